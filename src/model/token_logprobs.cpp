#include "model/token_logprobs.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "model/vocab_kernels.h"

namespace temper {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

static_assert(kLogsumexpBlock % PackedMatrix::kTileColumns == 0);

// Columns of logits alive at once. A GPU takes more of them, up to a gigabyte: its kernels are short.
int64_t block_columns(const at::Tensor& hidden) {
  if (hidden.is_cpu()) return kLogsumexpBlock;
  constexpr int64_t kElements = int64_t{1} << 28;
  return std::max<int64_t>(1, kElements / std::max<int64_t>(1, hidden.size(0)) / kLogsumexpBlock) * kLogsumexpBlock;
}

// The logits of columns [begin, end), [n, end - begin] f32, in a buffer that is used again for each block.
at::Tensor block_logits(const at::Tensor& hidden, const LinearWeights& head, int64_t begin, int64_t end,
                        at::Tensor& buffer) {
  at::Tensor block = buffer.narrow(0, 0, hidden.size(0) * (end - begin)).view({hidden.size(0), end - begin});
  head.forward.multiply_columns(hidden, begin, end, block);
  return block;
}

template <class Function>
void for_each_block(const at::Tensor& hidden, const LinearWeights& head, Function function) {
  const int64_t vocabulary = head.forward.num_outputs(), columns = block_columns(hidden);
  for (int64_t begin = 0; begin < vocabulary; begin += columns) function(begin, std::min(vocabulary, begin + columns));
}

at::Tensor block_buffer(const at::Tensor& hidden, const LinearWeights& head) {
  return at::empty({hidden.size(0) * std::min(block_columns(hidden), head.forward.num_outputs())},
                   hidden.options().dtype(at::kFloat));
}

struct LogprobResult {
  at::Tensor logprobs, entropies, logsumexp;  // [n] f32; logsumexp of logits / temperature
};

// Parts of a row's distribution become the whole's: with p_b the part's share of the probability,
// H = sum_b p_b (H_b - log p_b). logsumexps, entropies [n, parts].
LogprobResult combine(const at::Tensor& target_logits, const at::Tensor& logsumexps, const at::Tensor& entropies) {
  LogprobResult result;
  result.logsumexp = combine_logsumexp(logsumexps);
  const at::Tensor log_share = logsumexps - result.logsumexp.unsqueeze(1);
  result.entropies = (log_share.exp() * (entropies - log_share)).sum(1);
  result.logprobs = target_logits - result.logsumexp;
  return result;
}

// The ranks hold parts of the vocabulary: what each found about its own, [n] each, put together in their order.
LogprobResult combine_ranks(const at::Tensor& target_logits, const LogprobResult& own, Communicator& ranks) {
  const int64_t rows = target_logits.size(0);
  const at::Tensor mine = at::stack({target_logits, own.logsumexp, own.entropies});
  const at::Tensor all = at::empty({ranks.size(), 3, rows}, mine.options());
  ranks.all_gather("parts of the log-probabilities", mine, all).wait();
  return combine(all.select(1, 0).sum(0), all.select(1, 1).t().contiguous(), all.select(1, 2).t().contiguous());
}

LogprobResult compute(const at::Tensor& hidden, const at::Tensor& targets, const LinearWeights& head,
                      double temperature) {
  at::Tensor buffer = block_buffer(hidden, head);
  at::Tensor target_logits = at::zeros({hidden.size(0)}, buffer.options());  // times 1 / temperature
  std::vector<at::Tensor> sums, entropies;
  for_each_block(hidden, head, [&](int64_t begin, int64_t end) {
    const at::Tensor block = block_logits(hidden, head, begin, end, buffer);
    const VocabStatistics statistics =
        vocab_statistics(block, 1.0 / temperature, targets - begin, /*with_entropy=*/true);
    target_logits.add_(statistics.target_logits);  // 0 where the target is in another block
    sums.push_back(statistics.logsumexp);
    entropies.push_back(statistics.entropy);
  });
  const LogprobResult own = combine(target_logits, at::stack(sums, 1), at::stack(entropies, 1));
  return head.output_ranks == nullptr ? own : combine_ranks(target_logits, own, *head.output_ranks);
}

struct Logprobs : torch::autograd::Function<Logprobs> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& targets,
                               const LinearWeights* head, double temperature, bool entropy_gradient) {
    const LogprobResult result = compute(hidden, targets, *head, temperature);
    context->save_for_backward({hidden, targets, result.logsumexp, result.entropies});
    context->saved_data["head"] = reinterpret_cast<int64_t>(head);
    context->saved_data["temperature"] = temperature;
    context->saved_data["entropy_gradient"] = entropy_gradient;
    if (!entropy_gradient) context->mark_non_differentiable({result.entropies});
    return {result.logprobs, result.entropies};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &hidden = saved[0], &targets = saved[1], &logsumexp = saved[2], &entropies = saved[3];
    const auto& head = *reinterpret_cast<const LinearWeights*>(context->saved_data["head"].toInt());
    const double inv_temperature = 1.0 / context->saved_data["temperature"].toDouble();
    const bool with_entropy = context->saved_data["entropy_gradient"].toBool() && grads[1].defined();
    const at::Tensor grad = grads[0].defined() ? grads[0].to(at::kFloat).contiguous() : at::zeros_like(logsumexp);
    const at::Tensor entropy = with_entropy ? entropies : at::Tensor();
    const at::Tensor entropy_grad = with_entropy ? grads[1].to(at::kFloat).contiguous() : at::Tensor();
    at::Tensor buffer = block_buffer(hidden, head);
    at::Tensor hidden_grad = at::zeros(hidden.sizes(), buffer.options());
    for_each_block(hidden, head, [&](int64_t begin, int64_t end) {
      at::Tensor block = block_logits(hidden, head, begin, end, buffer);
      logits_backward_(block, inv_temperature, targets - begin, logsumexp, grad, entropy, entropy_grad);
      const at::Tensor dlogits = block.to(hidden.scalar_type());
      at::Tensor weight_grad = head.weight_grad.narrow(0, begin, end - begin);
      accumulate_outer_product(dlogits, hidden, weight_grad);
      head.backward.multiply_add_inputs(dlogits, begin, hidden_grad);  // += dlogits · W[begin:end]
    });
    if (head.output_ranks != nullptr) head.output_ranks->all_reduce("gradient of the head's input", hidden_grad).wait();
    return {hidden_grad.to(hidden.scalar_type()), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

TokenLogprobs token_logprobs(const at::Tensor& hidden, const at::Tensor& given_targets, const LinearWeights& head,
                             double temperature, bool entropy_gradient) {
  const at::Tensor targets = given_targets.to(hidden.device()) - head.first_output;
  TEMPER_CHECK(hidden.size(0) == targets.size(0) && temperature > 0, "{} rows, {} targets", hidden.size(0),
               targets.size(0));
  if (hidden.size(0) == 0) return {hidden.new_zeros({0}, at::kFloat), hidden.new_zeros({0}, at::kFloat)};
  if (at::GradMode::is_enabled() && hidden.requires_grad()) {
    const auto result = Logprobs::apply(hidden, targets, &head, temperature, entropy_gradient);
    return {result[0], result[1]};
  }
  const LogprobResult result = compute(hidden, targets, head, temperature);
  return {result.logprobs, result.entropies};
}

}  // namespace temper
