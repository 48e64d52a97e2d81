#include "algos/metric_sums.h"

#include <algorithm>

#include "core/error.h"

namespace temper {

double MetricSum::result() const {
  if (reduction == Reduction::kSum) return value;
  if (weight == 0) return 0;
  return reduction == Reduction::kMean ? value / weight : value;
}

void MetricSums::add(const MetricSum& entry) {
  const auto known =
      std::find_if(entries_.begin(), entries_.end(), [&](const auto& e) { return e.name == entry.name; });
  if (known == entries_.end()) {
    entries_.push_back(entry);
    return;
  }
  TEMPER_CHECK(known->reduction == entry.reduction, "metric {} is reduced in two ways", entry.name);
  const bool seen = known->weight != 0, adds = entry.weight != 0;
  known->weight += entry.weight;
  switch (entry.reduction) {
    case Reduction::kSum:
    case Reduction::kMean:
      known->value += entry.value;
      break;
    case Reduction::kMin:
      if (adds) known->value = seen ? std::min(known->value, entry.value) : entry.value;
      break;
    case Reduction::kMax:
      if (adds) known->value = seen ? std::max(known->value, entry.value) : entry.value;
      break;
  }
}

void MetricSums::merge(const MetricSums& other) {
  for (const MetricSum& entry : other.entries_) add(entry);
}

const MetricSum* MetricSums::find(std::string_view name) const {
  for (const MetricSum& entry : entries_)
    if (entry.name == name) return &entry;
  return nullptr;
}

double MetricSums::result(std::string_view name) const {
  const MetricSum* entry = find(name);
  TEMPER_CHECK(entry != nullptr, "no metric {}", name);
  return entry->result();
}

std::vector<std::pair<std::string, double>> MetricSums::results() const {
  std::vector<std::pair<std::string, double>> result;
  for (const MetricSum& entry : entries_)
    if (entry.logged) result.emplace_back(entry.name, entry.result());
  return result;
}

}  // namespace temper
