// Training for the benches: SFT steps on random tokens, one rank's model and loop.
#pragma once
#include <algorithm>
#include <memory>
#include <optional>

#include "apps/inference_model.h"
#include "model/model_weights.h"
#include "trainer/train_loop.h"

namespace temper {

struct BenchWorkload {
  int64_t sequence_tokens, step_tokens, micro_batch_tokens;
  int64_t num_sequences() const { return std::max<int64_t>(1, step_tokens / sequence_tokens); }
};

// SFT without an end.
StageConfig bench_stage(const BenchWorkload& work);

class BenchTrainer {
 public:
  BenchTrainer(const ModelWeights& model, const ComputeType& type, const StageConfig& config, const BenchWorkload& work,
               const Ranks& ranks);
  BenchTrainer(const BenchTrainer&) = delete;

  MetricRecord step() { return loop_->step().record; }
  const TrainLoopParts& parts() const { return parts_; }

 private:
  StageConfig config_;
  TrainerModel policy_;
  AdamW optimizer_;
  std::unique_ptr<Algorithm> algorithm_;
  TrainLoopParts parts_;
  std::optional<TrainLoop> loop_;
};

}  // namespace temper
