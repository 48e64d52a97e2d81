#include "trainer/packing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "core/error.h"

namespace temper {
namespace {

// Completions of one group that share a laid prompt.
struct Unit {
  std::vector<int64_t> completions;
  int64_t rows = 0;
};

int64_t own_rows(const StepBatch::Sequence& sequence) { return static_cast<int64_t>(sequence.completion->size()) - 1; }
int64_t prompt_rows(const StepBatch::Sequence& sequence) { return static_cast<int64_t>(sequence.prompt->size()); }

// A group that does not fit is cut: each part lays its own copy of the prompt.
std::vector<Unit> make_units(const StepBatch& batch, const std::vector<int64_t>& completions, int64_t max_tokens) {
  std::vector<Unit> units;
  int64_t group = -1;
  for (const int64_t i : completions) {
    const auto& sequence = batch.sequences[i];
    if (sequence.group != group || units.back().rows + own_rows(sequence) > max_tokens) {
      units.push_back({{}, prompt_rows(sequence)});
      group = sequence.group;
    }
    units.back().completions.push_back(i);
    units.back().rows += own_rows(sequence);
  }
  return units;
}

size_t bins_by_first_fit(std::span<const Unit> descending, int64_t max_tokens) {
  std::vector<int64_t> filled;
  for (const Unit& unit : descending) {
    const auto bin =
        std::find_if(filled.begin(), filled.end(), [&](int64_t rows) { return rows + unit.rows <= max_tokens; });
    if (bin == filled.end())
      filled.push_back(unit.rows);
    else
      *bin += unit.rows;
  }
  return filled.size();
}

// Largest first, each to the emptiest bin.
std::vector<std::vector<int64_t>> balance(std::span<const Unit> descending, size_t num_bins, int64_t* fullest) {
  std::vector<std::vector<int64_t>> bins(num_bins);
  std::vector<int64_t> filled(num_bins, 0);
  for (const Unit& unit : descending) {
    const size_t bin = std::min_element(filled.begin(), filled.end()) - filled.begin();
    bins[bin].insert(bins[bin].end(), unit.completions.begin(), unit.completions.end());
    filled[bin] += unit.rows;
  }
  *fullest = *std::max_element(filled.begin(), filled.end());
  return bins;
}

}  // namespace

int64_t packed_rows(const StepBatch& batch, const std::vector<int64_t>& completions) {
  int64_t rows = 0, group = -1;
  for (const int64_t i : completions) {
    const auto& sequence = batch.sequences[i];
    rows += own_rows(sequence) + (sequence.group == group ? 0 : prompt_rows(sequence));
    group = sequence.group;
  }
  return rows;
}

std::vector<MicroBatch> pack_micro_batches(const StepBatch& batch, const std::vector<int64_t>& completions,
                                           int64_t max_tokens) {
  std::vector<MicroBatch> packed;
  if (completions.empty()) return packed;
  std::vector<Unit> units = make_units(batch, completions, max_tokens);
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.rows > b.rows; });
  const auto fitting =
      std::find_if(units.begin(), units.end(), [&](const Unit& unit) { return unit.rows <= max_tokens; });
  for (auto unit = units.begin(); unit != fitting; ++unit) packed.push_back(pack(batch, std::move(unit->completions)));
  if (fitting == units.end()) return packed;
  const std::span<const Unit> rest(fitting, units.end());
  size_t num_bins = bins_by_first_fit(rest, max_tokens);
  int64_t fullest = 0;
  auto bins = balance(rest, num_bins, &fullest);
  while (fullest > max_tokens) bins = balance(rest, ++num_bins, &fullest);
  for (auto& bin : bins) {
    std::sort(bin.begin(), bin.end());
    packed.push_back(pack(batch, std::move(bin)));
  }
  return packed;
}

MicroBatch pack(const StepBatch& batch, std::vector<int64_t> completions) {
  MicroBatch micro;
  const int64_t total = packed_rows(batch, completions);
  std::vector<int64_t> ids, positions, rows, targets;
  ids.reserve(total);
  positions.reserve(total);
  int64_t group = -1, prompt_begin = 0, prompt_end = 0;
  for (const int64_t i : completions) {
    const auto& sequence = batch.sequences[i];
    if (sequence.group != group) {
      group = sequence.group;
      prompt_begin = static_cast<int64_t>(ids.size());
      ids.insert(ids.end(), sequence.prompt->begin(), sequence.prompt->end());
      prompt_end = static_cast<int64_t>(ids.size());
      for (int64_t p = 0; p < prompt_end - prompt_begin; ++p) positions.push_back(p);
      micro.segments.push_back({prompt_begin, prompt_end, 0, 0});
    }
    TEMPER_CHECK(prompt_end > prompt_begin, "a prompt without tokens predicts nothing");
    const int64_t begin = static_cast<int64_t>(ids.size()), end = begin + own_rows(sequence);
    ids.insert(ids.end(), sequence.completion->begin(), sequence.completion->end() - 1);
    for (int64_t r = begin; r < end; ++r) positions.push_back(prompt_end - prompt_begin + r - begin);
    if (end > begin) micro.segments.push_back({begin, end, prompt_begin, prompt_end});
    for (size_t t = 0; t < sequence.completion->size(); ++t)
      rows.push_back(t == 0 ? prompt_end - 1 : begin + static_cast<int64_t>(t) - 1);
    targets.insert(targets.end(), sequence.completion->begin(), sequence.completion->end());
  }
  micro.completions = std::move(completions);
  micro.token_ids = at::tensor(ids, at::kLong);
  micro.positions = at::tensor(positions, at::kLong);
  micro.rows = at::tensor(rows, at::kLong);
  micro.targets = at::tensor(targets, at::kLong);
  return micro;
}

}  // namespace temper
