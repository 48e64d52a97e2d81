// Mean and unbiased standard deviation of a few doubles.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

namespace temper {

inline double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / static_cast<double>(x.size());
}

// n - 1 in the denominator; 0 for fewer than two values.
inline double variance_of(const std::vector<double>& x) {
  if (x.size() < 2) return 0;
  const double mean = mean_of(x);
  double sum = 0;
  for (const double v : x) sum += (v - mean) * (v - mean);
  return sum / static_cast<double>(x.size() - 1);
}

inline double std_of(const std::vector<double>& x) { return std::sqrt(variance_of(x)); }

inline bool identical(const std::vector<double>& x) {
  return x.empty() || *std::max_element(x.begin(), x.end()) == *std::min_element(x.begin(), x.end());
}

}  // namespace temper
