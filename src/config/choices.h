// The settings that are one of a few words, for config and for everyone who acts on them (algos, trainer). Enumerators
// and the words of the configuration stand in the same order; the words are in choices.cpp.
#pragma once
#include <cstddef>
#include <span>
#include <string_view>

namespace temper {

enum class Device { kAuto, kCpu, kCuda };
enum class Dtype { kAuto, kF32, kBf16 };
enum class RolloutDtype { kAuto, kF32, kBf16, kInt8 };
enum class RolloutKind { kAuto, kInline, kHub };
enum class RolloutEnvironment { kNone, kCalculator };
enum class Shard { kNone, kOptimizer, kFull };
enum class LrScheduler { kConstant, kLinear, kCosine };

enum class Preset {
  kGrpo,
  kDapo,
  kDrGrpo,
  kGspo,
  kCispo,
  kSapo,
  kGmpo,
  kRloo,
  kRemax,
  kReinforcePlusPlus,
  kReinforcePlusPlusBaseline,
  kOpo,
  kGdpo,
  kGpg,
  kPpo,
  kDistill,
  kGkd,
  kSft,
  kDpo,
  kRewardModel,
};
enum class AdvEstimator {
  kGrpo,
  kRloo,
  kReinforcePlusPlus,
  kReinforcePlusPlusBaseline,
  kRemax,
  kOpo,
  kGpg,
  kGrpoPassk,
  kGdpo,
  kGae,
  kNone,
};
enum class ScaleRewards { kGroup, kBatch, kNone };
// The first eight, to kDppoTv, are losses of the ratio policy/old; the last four learn from given completions.
enum class PolicyLoss {
  kClip,
  kGspo,
  kCispo,
  kSapo,
  kGmpo,
  kClipCov,
  kKlCov,
  kDppoTv,
  kReinforce,
  kNone,
  kSft,
  kDpo,
  kIpo,
  kRewardModel,
};
enum class LossAggMode { kTokenMean, kTokenSum, kSeqMeanTokenSum, kSeqMeanTokenSumNorm, kSeqMeanTokenMean };
enum class CispoBound { kRelative, kAbsolute };
enum class KlEstimatorKind { kK1, kAbs, kK2, kK3, kK1Plus, kAbsPlus, kK3Plus };
enum class KlPlacement { kLoss, kReward };
enum class KlCtrlType { kFixed, kAdaptive };
enum class RolloutIs { kNone, kToken, kSequence };
enum class RolloutIsMode { kTruncate, kMask };
enum class RsDenominator { kKept, kAll };
enum class StalenessPolicy { kDrop, kWait };
enum class WeightTransport { kMessages, kNccl };
enum class DistillLoss { kNone, kForwardKl, kReverseKl, kJsd };

// The words of one enumeration, in the order of its enumerators.
template <class Enum>
std::span<const std::string_view> choice_names();

template <class Enum>
std::string_view to_string(Enum value) {
  return choice_names<Enum>()[static_cast<size_t>(value)];
}

}  // namespace temper
