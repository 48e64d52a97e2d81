#include "algos/preference.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace temper {
namespace {

struct Halves {
  at::Tensor chosen, rejected;  // [G]
};

Halves halves(const at::Tensor& per_completion) {
  const at::Tensor pairs = per_completion.view({-1, 2});
  return {pairs.select(1, 0), pairs.select(1, 1)};
}

// sum over m of (policy - ref), [B]
at::Tensor log_ratio_sums(const PolicyOutput& output, const LossBatch& batch, const Segments& segments) {
  TEMPER_CHECK(output.logprobs.defined() && batch.ref_logprobs.defined(), "dpo and ipo need policy and ref_logprobs");
  return segments.sum((output.logprobs - batch.ref_logprobs).masked_fill(batch.counted.logical_not(), 0));
}

// DPO: h = difference of log-ratio sums; l = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h). Rafailov et al.
// 2023, https://arxiv.org/abs/2305.18290; label smoothing (conservative DPO): Mitchell 2023,
// https://ericmitchell.ai/cdpo.pdf.
PairLoss dpo(const PolicyOutput& output, const LossBatch& batch, const Segments& segments,
             const AlgoSection& settings) {
  const auto [chosen, rejected] = halves(log_ratio_sums(output, batch, segments));
  const at::Tensor h = settings.dpo_beta * (chosen - rejected);
  const double eps = settings.label_smoothing;
  return {-(1 - eps) * at::log_sigmoid(h) - eps * at::log_sigmoid(-h),
          settings.dpo_beta * chosen.detach(),
          settings.dpo_beta * rejected.detach(),
          {}};
}

// IPO: l = (h - 1 / (2 beta))^2, each sum divided by its length (as TRL; OpenRLHF sums). Azar et al. 2023,
// https://arxiv.org/abs/2310.12036.
PairLoss ipo(const PolicyOutput& output, const LossBatch& batch, const Segments& segments,
             const AlgoSection& settings) {
  const at::Tensor sums = log_ratio_sums(output, batch, segments);
  const auto [chosen, rejected] = halves(sums / segments.sum(batch.counted.to(sums.scalar_type())).clamp_min(1));
  return {((chosen - rejected) - 1 / (2 * settings.dpo_beta)).square(),
          settings.dpo_beta * chosen.detach(),
          settings.dpo_beta * rejected.detach(),
          {}};
}

// Bradley-Terry with margin: v = the head's value at the last counted token; l = -log sigmoid(v_chosen - v_rejected -
// margin). Ouyang et al. 2022, https://arxiv.org/abs/2203.02155; margin: Touvron et al. 2023,
// https://arxiv.org/abs/2307.09288.
PairLoss reward_model(const PolicyOutput& output, const LossBatch& batch, const Segments& segments) {
  TEMPER_CHECK(output.values.defined(), "reward_model needs values");
  const at::Tensor index = at::arange(1, batch.num_tokens() + 1, batch.counted.options().dtype(at::kLong));
  const at::Tensor last = segments.spread(segments.max((index * batch.counted).to(at::kDouble))).to(at::kLong);
  const at::Tensor at_last = (last == index) & batch.counted;
  const auto [chosen, rejected] = halves(segments.sum(output.values.masked_fill(at_last.logical_not(), 0)));
  at::Tensor difference = chosen - rejected;
  if (batch.margins.defined()) difference = difference - batch.margins;
  return {-at::log_sigmoid(difference), chosen.detach(), rejected.detach(), {}};
}

}  // namespace

PairLoss preference_loss(const PolicyOutput& output, const LossBatch& micro_batch, const Segments& segments,
                         const AlgoSection& settings) {
  for (const int64_t size : micro_batch.group_sizes)
    TEMPER_CHECK(size == 2, "{} needs pairs of chosen and rejected, got a group of {}", to_string(settings.policy_loss),
                 size);
  PairLoss result;
  switch (settings.policy_loss) {
    case PolicyLoss::kDpo:
      result = dpo(output, micro_batch, segments, settings);
      break;
    case PolicyLoss::kIpo:
      result = ipo(output, micro_batch, segments, settings);
      break;
    case PolicyLoss::kRewardModel:
      result = reward_model(output, micro_batch, segments);
      break;
    default:
      throw InvariantError("not a preference loss");
  }
  result.stays = halves(micro_batch.stays).chosen;
  result.loss = at::where(result.stays, result.loss, at::zeros_like(result.loss));
  return result;
}

}  // namespace temper
