// Metrics that add up over micro-batches and ranks. Each entry declares how it is reduced, so that nothing is guessed
// from a name. Not thread-safe.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace temper {

enum class Reduction { kSum, kMean, kMin, kMax };

struct MetricSum {
  std::string name;
  Reduction reduction = Reduction::kSum;
  double value = 0;       // the sum, or the minimum or maximum so far
  double weight = 0;      // kMean: what the sum is divided by; kMin, kMax: 0 while nothing was seen
  bool logged = true;     // false: an ingredient of something else
  double result() const;  // 0 where nothing was seen
};

class MetricSums {
 public:
  void add(const MetricSum& entry);
  void add_sum(std::string_view name, double value) { add({std::string(name), Reduction::kSum, value, 1}); }
  void add_mean(std::string_view name, double sum, double weight) {
    add({std::string(name), Reduction::kMean, sum, weight});
  }
  void merge(const MetricSums& other);

  const std::vector<MetricSum>& entries() const { return entries_; }  // in the order of first appearance
  const MetricSum* find(std::string_view name) const;
  double result(std::string_view name) const;                   // REQUIRES: it is there
  std::vector<std::pair<std::string, double>> results() const;  // the logged ones

 private:
  std::vector<MetricSum> entries_;
};

}  // namespace temper
