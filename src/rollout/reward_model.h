// A reward model (a …ForSequenceClassification directory with one label) as a reward: its number at a completion's last
// token. The completions of a group are one forward pass, in which their prompt is computed once.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <memory>
#include <string>

#include "model/transformer.h"
#include "rollout/reward.h"

namespace temper {

class ModelReward final : public Reward {
 public:
  // ConfigError where the directory holds no reward model.
  ModelReward(const std::string& directory, c10::ScalarType compute, c10::Device device = c10::kCPU);

  const std::string& name() const override { return name_; }
  // Answers before it returns. A completion beyond the model's context or vocabulary fails.
  std::future<std::vector<RewardOutcome>> score(std::shared_ptr<const RolloutGroup> group, Deadline deadline) override;

 private:
  std::string name_ = "model";
  std::string directory_;
  std::unique_ptr<Transformer> model_;
};

}  // namespace temper
