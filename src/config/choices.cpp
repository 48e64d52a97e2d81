#include "config/choices.h"

#include <array>

namespace temper {

#define TEMPER_CHOICES(Enum, ...)                                                  \
  template <>                                                                      \
  std::span<const std::string_view> choice_names<Enum>() {                         \
    static constexpr auto kNames = std::to_array<std::string_view>({__VA_ARGS__}); \
    return kNames;                                                                 \
  }                                                                                \
  static_assert(true)

TEMPER_CHOICES(Device, "auto", "cpu", "cuda");
TEMPER_CHOICES(Dtype, "auto", "f32", "bf16");
TEMPER_CHOICES(RolloutDtype, "auto", "f32", "bf16", "int8");
TEMPER_CHOICES(RolloutKind, "auto", "inline", "hub");
TEMPER_CHOICES(RolloutEnvironment, "none", "calculator");
TEMPER_CHOICES(Shard, "none", "optimizer", "full");
TEMPER_CHOICES(LrScheduler, "constant", "linear", "cosine");
TEMPER_CHOICES(Preset, "grpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "gmpo", "rloo", "remax",
               "reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "gdpo", "gpg", "ppo", "distill", "gkd",
               "sft", "dpo", "reward_model");
TEMPER_CHOICES(AdvEstimator, "grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "opo",
               "gpg", "grpo_passk", "gdpo", "gae", "none");
TEMPER_CHOICES(ScaleRewards, "group", "batch", "none");
TEMPER_CHOICES(PolicyLoss, "clip", "gspo", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov", "dppo_tv", "reinforce",
               "none", "sft", "dpo", "ipo", "reward_model");
TEMPER_CHOICES(LossAggMode, "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm",
               "seq-mean-token-mean");
TEMPER_CHOICES(CispoBound, "relative", "absolute");
TEMPER_CHOICES(KlEstimatorKind, "k1", "abs", "k2", "k3", "k1+", "abs+", "k3+");
TEMPER_CHOICES(KlPlacement, "loss", "reward");
TEMPER_CHOICES(KlCtrlType, "fixed", "adaptive");
TEMPER_CHOICES(RolloutIs, "none", "token", "sequence");
TEMPER_CHOICES(RolloutIsMode, "truncate", "mask");
TEMPER_CHOICES(RsDenominator, "kept", "all");
TEMPER_CHOICES(StalenessPolicy, "drop", "wait");
TEMPER_CHOICES(WeightTransport, "messages", "nccl");
TEMPER_CHOICES(DistillLoss, "none", "forward_kl", "reverse_kl", "jsd");

#undef TEMPER_CHOICES

}  // namespace temper
