// A completion in which every member says something.
#pragma once
#include "core/rollout_types.h"

namespace temper {

inline Completion example_completion() {
  Completion completion;
  completion.token_ids = {4, 5};
  completion.logprobs = {-1.5F, -0.25F};
  completion.behavior_logprobs = {-1.25F, -0.5F};
  completion.policy_versions = {9, 10};
  completion.mask = {1, 0};
  completion.text = "text";
  completion.finish_reason = FinishReason::kLength;
  completion.rewards = {1, 0.5};
  completion.error = "why";
  return completion;
}

}  // namespace temper
