#include "trainer/train_loop.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "algos/kl.h"
#include "core/clock.h"
#include "core/error.h"
#include "trainer/step_metrics.h"

namespace temper {

// What the micro-batches of one step add up to.
struct TrainLoop::Update {
  double loss = 0;
  double grad_norm = 0;  // of the last mini-batch
  double learning_rate = 0;
  int64_t num_updates = 0;
  int64_t num_rows = 0;           // computed in forward passes
  int64_t num_gradient_rows = 0;  // of these, with a backward pass
  MetricSums metrics;
};

// produces: one version of the weights and one record; consumes: num_prompts_per_step groups;
// waits for: take_groups; is unblocked by: the engine or the data set, in this thread.
StepResult TrainLoop::step() {
  StepResult result;
  StepTimer timer(result.record);
  Update update;

  result.batch = build_step_batch(parts_.take_groups(counters_.next_serial, parts_.config->train.num_prompts_per_step),
                                  parts_.reward_weights);
  timer.lap(parts_.config->algo.trains_on_rollouts() ? "gen" : "data");
  add_old_and_reference(result.batch, result.record);
  timer.skip();
  const AdvantageReport advantages = parts_.algorithm->advantages(result.batch.loss);
  for (int64_t epoch = 0; epoch < parts_.config->algo.num_epochs; ++epoch)
    for (const auto& mini_batch : split_in_order(result.batch, parts_.config->algo.num_minibatches)) {
      run_mini_batch(result.batch, mini_batch, update);
      apply_gradients(update);
    }
  update_kl_coef(advantages, update);
  timer.lap("update_actor");

  counters_.next_serial += parts_.config->train.num_prompts_per_step;
  ++counters_.step;
  parts_.policy->publish(++counters_.policy_version);
  timer.lap("update_weights");

  // ---- diagnostics ----
  report(result.batch, advantages, update, result.record);
  timer.finish();
  return result;
}

void TrainLoop::run_mini_batch(const StepBatch& batch, const std::vector<int64_t>& completions, Update& update) const {
  const GlobalCounts counts = global_counts(batch.loss.select(completions));
  std::vector<int64_t> learning, constant;
  for (const int64_t i : completions) (has_gradient(batch, i) ? learning : constant).push_back(i);
  const int64_t max_tokens = parts_.config->train.max_tokens_per_micro_batch;
  for (const MicroBatch& micro : pack_micro_batches(batch, learning, max_tokens))
    run_micro_batch(micro, batch, counts, update);
  // Their gradient is zero: a forward pass is enough for the metrics.
  at::NoGradGuard no_grad;
  for (const MicroBatch& micro : pack_micro_batches(batch, constant, max_tokens))
    run_micro_batch(micro, batch, counts, update);
}

void TrainLoop::run_micro_batch(const MicroBatch& micro, const StepBatch& batch, const GlobalCounts& counts,
                                Update& update) const {
  const TokenLogprobs forward = parts_.policy->logprobs(micro, temperature());
  PolicyOutput output;
  output.logprobs = forward.logprobs.to(at::kDouble);
  output.entropies = forward.entropies.to(at::kDouble);
  LossResult result = parts_.algorithm->loss(output, batch.loss.select(micro.completions), counts);
  const double loss = result.loss.item<double>();
  if (!std::isfinite(loss))
    throw NumericsError(
        "stage {}, step {}: the loss is {}. Lower optim.learning_rate, or resume from an earlier checkpoint.",
        parts_.config->name, counters_.step + 1, loss);
  if (result.loss.requires_grad()) {
    result.loss.backward();
    update.num_gradient_rows += micro.token_ids.numel();
  }
  update.num_rows += micro.token_ids.numel();
  update.loss += loss;
  update.metrics.merge(result.metrics);
}

void TrainLoop::apply_gradients(Update& update) {
  const OptimSection& optim = parts_.config->optim;
  update.grad_norm = global_norm(parts_.policy->gradients().flat());
  if (!std::isfinite(update.grad_norm)) {
    parts_.policy->gradients().flat().zero_();
    throw NumericsError(
        "stage {}, step {}: the gradient's norm is {}. Lower optim.learning_rate, or resume from an earlier "
        "checkpoint.",
        parts_.config->name, counters_.step + 1, update.grad_norm);
  }
  const double limit = optim.max_grad_norm;
  const double scale = limit > 0 && update.grad_norm > limit ? limit / (update.grad_norm + 1e-6) : 1.0;
  update.learning_rate = scheduled_learning_rate(optim, counters_.step + 1, parts_.config->train.max_steps);
  parts_.optimizer->step(parts_.policy->parameters(), parts_.policy->gradients(), update.learning_rate, scale);
  ++update.num_updates;
}

// With zero advantages and no other term in the loss, a completion's gradient is exactly zero.
bool TrainLoop::has_gradient(const StepBatch& batch, int64_t completion) const {
  const AlgoSection& algo = parts_.config->algo;
  if (!algo.trains_on_rollouts() || parts_.algorithm->kl_coef() > 0 || algo.entropy_coef != 0) return true;
  const std::vector<int64_t> offsets = batch.loss.offsets();
  return batch.loss.advantages.slice(0, offsets[completion], offsets[completion + 1]).count_nonzero().item<int64_t>() >
         0;
}

// The adaptive controller's next coefficient, from the KL of this step.
void TrainLoop::update_kl_coef(const AdvantageReport& advantages, const Update& update) {
  const AlgoSection& algo = parts_.config->algo;
  if (algo.kl_ctrl.type != KlCtrlType::kAdaptive || !algo.needs_reference()) return;
  const std::optional<double> current = current_kl(advantages, update.metrics);
  if (!current) return;
  const auto completions =
      static_cast<double>(parts_.config->train.num_prompts_per_step * parts_.config->rollout.num_generations);
  parts_.algorithm->set_kl_coef(next_kl_coef(algo, parts_.algorithm->kl_coef(), *current, completions));
}

double TrainLoop::temperature() const {
  return parts_.config->algo.trains_on_rollouts() ? parts_.config->rollout.temperature : 1.0;
}

void TrainLoop::add_old_and_reference(StepBatch& batch, MetricRecord& record) const {
  const AlgoSection& algo = parts_.config->algo;
  if (!algo.trains_on_rollouts()) return;
  const int64_t max_tokens = parts_.config->train.max_tokens_per_micro_batch;
  Stopwatch watch;
  // With one update a step, old is the policy's own forward pass held constant: no extra pass.
  if (algo.num_epochs * algo.num_minibatches > 1 || needs_old_before_loss(algo)) {
    batch.loss.old_logprobs = completion_logprobs(*parts_.policy, batch, max_tokens, temperature());
    record.set("timing_s/old_log_prob", watch.restart());
  }
  if (algo.needs_reference()) {
    TEMPER_CHECK(parts_.reference != nullptr, "the stage loads a reference where algo.kl_coef > 0");
    batch.loss.ref_logprobs = completion_logprobs(*parts_.reference, batch, max_tokens, temperature());
    record.set("timing_s/ref", watch.seconds());
  }
}

void TrainLoop::report(const StepBatch& batch, const AdvantageReport& advantages, const Update& update,
                       MetricRecord& record) const {
  record.stage = parts_.config->name;
  record.step = counters_.step;
  record.policy_version = counters_.policy_version;
  record.time = seconds_since_epoch();
  const double updates = static_cast<double>(update.num_updates);
  record.set("loss", update.loss / updates);
  for (const auto& [name, value] : advantages.metrics) record.set(name, value);
  for (const auto& [name, value] : update.metrics.results()) record.set(name, value);
  record.set("grad_norm", update.grad_norm);
  record.set("learning_rate", update.learning_rate);
  add_batch_metrics(batch, counters_.policy_version - 1, record);
  add_throughput_metrics({update.num_rows, update.num_gradient_rows, batch.num_completion_tokens, parts_.peak_flops},
                         parts_.policy->config(), record);
}

double scheduled_learning_rate(const OptimSection& optim, int64_t step, int64_t max_steps) {
  if (step <= optim.warmup_steps)
    return optim.learning_rate * static_cast<double>(step) / static_cast<double>(optim.warmup_steps);
  const double total = static_cast<double>(std::max<int64_t>(1, max_steps - optim.warmup_steps));
  const double done = std::min(1.0, static_cast<double>(step - 1 - optim.warmup_steps) / total);
  switch (optim.lr_scheduler_type) {
    case LrScheduler::kConstant:
      return optim.learning_rate;
    case LrScheduler::kLinear:
      return optim.learning_rate * (1 - done);
    case LrScheduler::kCosine:
      return optim.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * done));
  }
  return optim.learning_rate;
}

}  // namespace temper
