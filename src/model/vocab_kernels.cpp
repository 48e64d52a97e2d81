#include "model/vocab_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "model/vocab_row_kernels.h"

namespace temper {

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

void check_logits(const at::Tensor& logits, double inv_temperature) {
  TEMPER_CHECK(logits.dim() == 2 && logits.size(1) > 0 && logits.is_contiguous(), "logits {} are not contiguous rows",
               logits.sizes());
  TEMPER_CHECK(inv_temperature > 0, "1 / temperature is {}", inv_temperature);
}

bool use_kernels(const at::Tensor& logits) { return logits.device().is_cpu() && logits.scalar_type() == at::kFloat; }

// One column of each row; a target outside [0, V) has none.
struct Targets {
  Targets(const at::Tensor& targets, int64_t vocab)
      : outside(targets.lt(0).logical_or(targets.ge(vocab))), columns(targets.clamp(0, vocab - 1).unsqueeze(1)) {}
  at::Tensor of(const at::Tensor& rows) const { return rows.gather(1, columns).squeeze(1).masked_fill(outside, 0); }
  void add_to(at::Tensor& rows, const at::Tensor& values) const {
    rows.scatter_add_(1, columns, values.masked_fill(outside, 0).unsqueeze(1));
  }
  at::Tensor outside, columns;  // [n], [n, 1]
};

VocabStatistics statistics_reference(const at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                                     bool with_entropy) {
  const at::Tensor scaled = logits * inv_temperature;
  VocabStatistics result;
  result.logsumexp = scaled.logsumexp(-1);
  if (targets.defined()) result.target_logits = Targets(targets, logits.size(1)).of(scaled);
  if (with_entropy) {
    const at::Tensor p = (scaled - result.logsumexp.unsqueeze(1)).exp();
    result.entropy = -at::xlogy(p, p).sum(-1);
  }
  return result;
}

// On a GPU, where passes over the logits are what counts: one softmax, and the sums from it. The largest probability is
// 1 / sum exp(x - top).
VocabStatistics statistics_on_device(const at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                                     bool with_entropy) {
  const at::Tensor scaled = inv_temperature == 1 ? logits : logits * inv_temperature;
  const auto [top, place] = scaled.max(1);
  const at::Tensor p = scaled.softmax(1);
  VocabStatistics result;
  result.logsumexp = top - p.gather(1, place.unsqueeze(1)).squeeze(1).log();
  if (targets.defined()) result.target_logits = Targets(targets, logits.size(1)).of(scaled);
  if (with_entropy) result.entropy = result.logsumexp - at::bmm(p.unsqueeze(1), scaled.unsqueeze(2)).view({-1});
  return result;
}

// In place, without the entropy's term.
void backward_on_device(at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                        const at::Tensor& logsumexp, const at::Tensor& grad) {
  const at::Tensor scaled_grad = grad.to(logits.scalar_type()) * inv_temperature;
  if (inv_temperature != 1) logits.mul_(inv_temperature);
  logits.sub_(logsumexp.unsqueeze(1)).exp_().mul_(-scaled_grad.unsqueeze(1));
  Targets(targets, logits.size(1)).add_to(logits, scaled_grad);
}

void backward_reference(at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                        const at::Tensor& logsumexp, const at::Tensor& given_grad, const at::Tensor& entropy,
                        const at::Tensor& entropy_grad) {
  const at::Tensor grad = given_grad.to(logits.scalar_type());
  const at::Tensor log_p = logits * inv_temperature - logsumexp.unsqueeze(1), p = log_p.exp();
  at::Tensor result = -p * grad.unsqueeze(1);
  if (entropy_grad.defined())
    result = result - p * (log_p.clamp_min(-100) + entropy.unsqueeze(1)) * entropy_grad.unsqueeze(1);
  Targets(targets, logits.size(1)).add_to(result, grad);
  logits.copy_(result * inv_temperature);
}

// The smallest of the values that are kept when they are taken from the largest down until their weights reach needed.
// values is reordered.
float select_nucleus(std::vector<float>& values, float maximum, float inv_temperature, double needed) {
  const auto weight = [&](float x) { return std::exp(static_cast<double>(x - maximum) * inv_temperature); };
  auto first = values.begin(), last = values.end();
  while (last - first > 32) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, std::greater<>());
    double upper = 0;
    for (auto i = first; i != middle; ++i) upper += weight(*i);
    if (upper >= needed) {
      last = middle;
    } else {
      needed -= upper;
      first = middle;
    }
  }
  std::sort(first, last, std::greater<>());
  for (; first != last; ++first) {
    needed -= weight(*first);
    if (needed <= 0) return *first;
  }
  return *(last - 1);
}

// The same for the whole row: halves the range of logits in which the answer lies until few candidates are left.
float nucleus_of_row(const float* logits, int64_t vocab, float maximum, float inv_temperature, double top_p) {
  const VocabRowKernels& kernels = vocab_row_kernels();
  std::vector<float> weights(vocab), values;
  kernels.weights(logits, vocab, maximum, inv_temperature, weights.data());
  const double total = kernels.sum_kept(logits, weights.data(), vocab, kLowest), needed = top_p * total;
  if (!(total > 0)) return kLowest;
  // Tokens lighter than (1 - top_p) * total / V cannot hold more than 1 - top_p together: the answer lies above them.
  const double lightest = (1 - top_p) * total / static_cast<double>(vocab) * 0.999;
  float low = maximum + static_cast<float>(std::log(lightest) / inv_temperature), high = maximum;
  double above = 0;  // weight of the logits from high on, less than needed
  for (int pass = 0; pass < 8; ++pass) {
    const float middle = low + (high - low) / 2;
    if (!(middle > low && middle < high)) break;
    const double sum = kernels.sum_kept(logits, weights.data(), vocab, middle);
    if (sum >= needed) {
      low = middle;
    } else {
      high = middle;
      above = sum;
    }
  }
  kernels.collect(logits, vocab, low, values);
  if (above > 0)
    values.erase(std::remove_if(values.begin(), values.end(), [&](float x) { return x >= high; }), values.end());
  return values.empty() ? high : select_nucleus(values, maximum, inv_temperature, needed - above);
}

// The k-th largest logit; values become those that are not smaller.
float top_k_threshold(const float* logits, int64_t vocab, int64_t k, std::vector<float>& values) {
  const VocabRowKernels& kernels = vocab_row_kernels();
  // Each block's maximum is one logit, so the k-th largest maximum is a lower bound that leaves few candidates.
  std::vector<float> maxima((vocab + kMaximaBlock - 1) / kMaximaBlock);
  float bound = kLowest;
  if (k <= static_cast<int64_t>(maxima.size())) {
    kernels.block_maxima(logits, vocab, maxima.data());
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
    bound = maxima[k - 1];
  }
  kernels.collect(logits, vocab, bound, values);
  if (static_cast<int64_t>(values.size()) <= k) return bound;
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
  const float threshold = values[k - 1];
  values.erase(std::remove_if(values.begin(), values.end(), [&](float x) { return x < threshold; }), values.end());
  return threshold;
}

}  // namespace

VocabStatistics vocab_statistics(const at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                                 bool with_entropy) {
  check_logits(logits, inv_temperature);
  TEMPER_CHECK(!targets.defined() ||
                   (targets.dim() == 1 && targets.size(0) == logits.size(0) && targets.scalar_type() == at::kLong),
               "targets do not fit logits {}", logits.sizes());
  if (logits.is_cuda()) return statistics_on_device(logits, inv_temperature, targets, with_entropy);
  if (!use_kernels(logits)) return statistics_reference(logits, inv_temperature, targets, with_entropy);
  const int64_t num_rows = logits.size(0), vocab = logits.size(1);
  const auto make = [&](bool wanted) { return wanted ? at::empty({num_rows}, at::kFloat) : at::Tensor(); };
  VocabStatistics result{make(true), make(targets.defined()), make(with_entropy)};
  const at::Tensor target = targets.defined() ? targets.contiguous() : targets;
  const float* rows = logits.const_data_ptr<float>();
  const float scale = static_cast<float>(inv_temperature);
  const VocabRowKernels& kernels = vocab_row_kernels();
  float* logsumexp = result.logsumexp.data_ptr<float>();
  float* target_logits = targets.defined() ? result.target_logits.data_ptr<float>() : nullptr;
  float* entropy = with_entropy ? result.entropy.data_ptr<float>() : nullptr;
  const int64_t* target_ids = targets.defined() ? target.const_data_ptr<int64_t>() : nullptr;
  at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = rows + r * vocab;
      const float top = kernels.maximum(row, vocab);
      double weighted = 0;
      const double sum =
          kernels.sum_weights(row, vocab, top, scale, kLowest, nullptr, with_entropy ? &weighted : nullptr);
      logsumexp[r] = static_cast<float>(static_cast<double>(top) * inv_temperature + std::log(sum));
      if (entropy != nullptr) entropy[r] = static_cast<float>(std::log(sum) - weighted / sum);
      if (target_logits != nullptr) {
        const bool inside = target_ids[r] >= 0 && target_ids[r] < vocab;
        target_logits[r] =
            inside ? static_cast<float>(static_cast<double>(row[target_ids[r]]) * inv_temperature) : 0.0f;
      }
    }
  });
  return result;
}

at::Tensor row_logsumexp(const at::Tensor& logits, double inv_temperature) {
  return vocab_statistics(logits, inv_temperature, {}, false).logsumexp;
}

at::Tensor row_entropy(const at::Tensor& logits, double inv_temperature) {
  return vocab_statistics(logits, inv_temperature, {}, true).entropy;
}

void logits_backward_(at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                      const at::Tensor& logsumexp, const at::Tensor& grad, const at::Tensor& entropy,
                      const at::Tensor& entropy_grad) {
  check_logits(logits, inv_temperature);
  const int64_t num_rows = logits.size(0), vocab = logits.size(1);
  TEMPER_CHECK(targets.size(0) == num_rows && logsumexp.size(0) == num_rows && grad.size(0) == num_rows &&
                   entropy.defined() == entropy_grad.defined(),
               "targets {}, logsumexp {} and grad {} do not fit logits {}", targets.sizes(), logsumexp.sizes(),
               grad.sizes(), logits.sizes());
  if (logits.is_cuda() && !entropy.defined()) {
    backward_on_device(logits, inv_temperature, targets, logsumexp, grad);
    return;
  }
  if (!use_kernels(logits)) {
    backward_reference(logits, inv_temperature, targets, logsumexp, grad, entropy, entropy_grad);
    return;
  }
  const auto dense = [](const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; };
  const at::Tensor sums = dense(logsumexp), grads = dense(grad), entropies = dense(entropy),
                   entropy_grads = dense(entropy_grad);
  const at::Tensor target = targets.to(at::kLong).contiguous();
  const int64_t* target_ids = target.const_data_ptr<int64_t>();
  const auto value = [](const at::Tensor& x, int64_t r) { return x.defined() ? x.const_data_ptr<float>()[r] : 0.0f; };
  float* rows = logits.data_ptr<float>();
  const VocabRowKernels& kernels = vocab_row_kernels();
  at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const bool inside = target_ids[r] >= 0 && target_ids[r] < vocab;
      RowGradient row;
      row.inv_temperature = static_cast<float>(inv_temperature);
      row.logsumexp = value(sums, r);
      row.grad = value(grads, r);
      row.entropy = value(entropies, r);
      row.entropy_grad = value(entropy_grads, r);
      kernels.differentiate(rows + r * vocab, vocab, row);
      if (inside) rows[r * vocab + target_ids[r]] += row.grad * row.inv_temperature;
    }
  });
}

int64_t row_argmax(const float* logits, int64_t vocab) {
  const VocabRowKernels& kernels = vocab_row_kernels();
  const int64_t index = kernels.first_equal(logits, vocab, kernels.maximum(logits, vocab));
  return index < vocab ? index : 0;
}

float filter_threshold(const float* logits, int64_t vocab, float inv_temperature, const TokenFilter& filter) {
  const VocabRowKernels& kernels = vocab_row_kernels();
  const float top = kernels.maximum(logits, vocab);
  if (!std::isfinite(top)) return kLowest;  // no distribution to filter
  float threshold = kLowest;
  std::vector<float> values;
  const bool by_count = filter.top_k > 0 && filter.top_k < vocab;
  if (by_count) threshold = top_k_threshold(logits, vocab, filter.top_k, values);
  if (filter.top_p < 1.0 && by_count) {
    double total = 0;
    for (const float x : values) total += std::exp(static_cast<double>(x - top) * inv_temperature);
    threshold = std::max(threshold, select_nucleus(values, top, inv_temperature, filter.top_p * total));
  } else if (filter.top_p < 1.0) {
    threshold = nucleus_of_row(logits, vocab, top, inv_temperature, filter.top_p);
  }
  if (filter.min_p > 0)
    threshold = std::max(threshold, top + static_cast<float>(std::log(filter.min_p) / inv_temperature));
  return threshold;
}

namespace {

float combine(const float* sums, int64_t count) {
  const double top = *std::max_element(sums, sums + count);
  if (!std::isfinite(top)) return static_cast<float>(top);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += std::exp(static_cast<double>(sums[i]) - top);
  return static_cast<float>(top + std::log(total));
}

struct RowSums {
  float top;
  double total;  // of the weights exp((logit - top) * inv_temperature)
  float logsumexp;
};

// Block by block, each from its own maximum as vocab_statistics takes it; block_sums [vocab / kVocabBlock] and total
// are then weights from the row's maximum.
RowSums sum_row(const float* logits, int64_t vocab, double inv_temperature, std::vector<float>& block_sums) {
  const VocabRowKernels& kernels = vocab_row_kernels();
  thread_local std::vector<float> sums, tops;
  sums.clear();
  tops.clear();
  for (int64_t first = 0; first < vocab; first += kLogsumexpBlock) {
    const int64_t count = std::min(kLogsumexpBlock, vocab - first);
    const float top = kernels.maximum(logits + first, count);
    float* parts = block_sums.data() + first / kVocabBlock;
    tops.push_back(top);
    if (top == kLowest) {  // all masked
      sums.push_back(kLowest);
      std::fill_n(parts, (count + kVocabBlock - 1) / kVocabBlock, 0.0f);
      continue;
    }
    const double sum =
        kernels.sum_weights(logits + first, count, top, static_cast<float>(inv_temperature), kLowest, parts, nullptr);
    sums.push_back(static_cast<float>(static_cast<double>(top) * inv_temperature + std::log(sum)));
  }
  RowSums row{*std::max_element(tops.begin(), tops.end()), 0, combine(sums.data(), static_cast<int64_t>(sums.size()))};
  constexpr size_t kParts = kLogsumexpBlock / kVocabBlock;
  for (size_t i = 0; i < block_sums.size(); ++i) {
    const double shift = static_cast<double>(tops[i / kParts]) - row.top;
    block_sums[i] = static_cast<float>(block_sums[i] * std::exp(shift * inv_temperature));
    row.total += block_sums[i];
  }
  return row;
}

}  // namespace

at::Tensor combine_logsumexp(const at::Tensor& block_sums) {
  if (!block_sums.is_cpu()) return block_sums.to(at::kDouble).logsumexp(1).to(at::kFloat);
  const at::Tensor sums = block_sums.contiguous();
  at::Tensor result = at::empty({sums.size(0)}, at::kFloat);
  for (int64_t r = 0; r < sums.size(0); ++r)
    result.mutable_data_ptr<float>()[r] = combine(sums.const_data_ptr<float>() + r * sums.size(1), sums.size(1));
  return result;
}

TokenDraw draw_token(const float* logits, int64_t vocab, double temperature, const TokenFilter& filter, double u) {
  static_assert(kLogsumexpBlock % kVocabBlock == 0);
  const VocabRowKernels& kernels = vocab_row_kernels();
  const int64_t num_blocks = (vocab + kVocabBlock - 1) / kVocabBlock;
  thread_local std::vector<float> block_sums;
  block_sums.resize(static_cast<size_t>(num_blocks));
  RowSums sums = sum_row(logits, vocab, 1, block_sums);
  const float top = sums.top;
  TokenDraw draw;
  draw.logsumexp = sums.logsumexp;
  if (temperature == 0) {
    draw.token = row_argmax(logits, vocab);
    draw.logit = logits[draw.token];
    draw.scaled_logsumexp = draw.logsumexp;
    return draw;
  }
  const float inv_temperature = static_cast<float>(1 / temperature);
  if (temperature != 1) sums = sum_row(logits, vocab, 1 / temperature, block_sums);
  draw.scaled_logsumexp = sums.logsumexp;
  double total = sums.total;
  float threshold = kLowest;
  if (filter.active(vocab)) {
    threshold = filter_threshold(logits, vocab, inv_temperature, filter);
    total = kernels.sum_weights(logits, vocab, top, inv_temperature, threshold, block_sums.data(), nullptr);
  }

  const double target = u * total;
  double cumulative = 0;
  int64_t block = 0;
  while (block + 1 < num_blocks && !(cumulative + block_sums[block] > target)) cumulative += block_sums[block++];
  // Rounding may leave the target just beyond the last weight of a block, or the last blocks empty: then the last token
  // with a weight is it.
  int64_t found = -1;
  for (; block >= 0 && found < 0; --block) {
    const int64_t first = block * kVocabBlock;
    found = kernels.find(logits + first, std::min(kVocabBlock, vocab - first), top, inv_temperature, threshold,
                         cumulative, target);
    if (found >= 0) found += first;
    cumulative = -std::numeric_limits<double>::infinity();  // a block further down: its last token
  }
  draw.token = std::max<int64_t>(found, 0);
  draw.logit = logits[draw.token];
  return draw;
}

}  // namespace temper
