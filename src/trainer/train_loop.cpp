#include "trainer/train_loop.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "algos/kl.h"
#include "algos/vocabulary_divergence.h"
#include "core/clock.h"
#include "core/error.h"
#include "model/large_pages.h"
#include "trainer/step_metrics.h"

namespace temper {
namespace {

// Losses are computed on the CPU, from one number a token, wherever the model is.
const at::TensorOptions kLossOptions = at::TensorOptions(at::kCPU).dtype(at::kDouble);

}  // namespace

// What the micro-batches of one step add up to.
struct TrainLoop::Update {
  double grad_norm = 0;  // of the last mini-batch
  double critic_grad_norm = 0;
  double learning_rate = 0;
  int64_t num_mini_batches = 0;  // looked at
  int64_t num_updates = 0;       // learned from
  bool stopped_early = false;
  double kl_coef = 0;             // the mini-batches learned with
  int64_t num_rows = 0;           // computed in forward passes
  int64_t num_gradient_rows = 0;  // of these, with a backward pass
  double wait_for_ranks_s = 0;    // for sums of gradients that did not hide behind a backward pass
  std::string failure;            // of a loss, on this rank; the ranks agree on it before anyone throws
  MetricSums metrics;
};

TrainLoop::TrainLoop(TrainLoopParts parts, TrainCounters counters) : parts_(std::move(parts)), counters_(counters) {
  if (parts_.policy->shards() != nullptr) return;  // sharded weights bring their gradients to the owners themselves
  policy_sum_ = std::make_unique<GradientSum>(parts_.ranks, parts_.optimizer->plan(), parts_.policy->gradients());
  if (parts_.critic_optimizer != nullptr)
    critic_sum_ =
        std::make_unique<GradientSum>(parts_.ranks, parts_.critic_optimizer->plan(), parts_.critic->gradients());
}

// produces: one version of the weights and one record; consumes: num_prompts_per_step groups, more where groups are
// filtered; waits for: take_groups; is unblocked by: the engine or the data set, in this thread.
StepResult TrainLoop::step() {
  const AlgoSection& algo = parts_.config->algo;
  StepResult result;
  StepBatch& batch = result.batch;
  StepTimer timer(result.record);
  Update update;

  batch = take_batch(result.record);
  timer.lap(algo.trains_on_rollouts() ? "gen" : "data");
  add_model_outputs(batch, result.record);
  timer.skip();
  const AdvantageReport advantages = parts_.algorithm->advantages(batch.loss);
  update.kl_coef = parts_.algorithm->kl_coef();
  for (int64_t epoch = 0; epoch < algo.num_epochs && !update.stopped_early; ++epoch)
    for (const auto& mini_batch : split_in_order(batch, algo.num_minibatches)) {
      if (update.num_updates > 0) parts_.policy->refresh();  // what this step learned so far
      select_tokens(batch, mini_batch, update.num_updates);
      const MetricSums metrics = run_mini_batch(batch, mini_batch, update);
      update.metrics.merge(metrics);
      ++update.num_mini_batches;
      if ((update.stopped_early = drifted_too_far(metrics))) break;
      apply_gradients(update);
    }
  update_kl_coef(batch, advantages, update);
  timer.lap("update_actor");

  ++counters_.step;
  parts_.policy->publish(++counters_.policy_version);
  timer.lap("update_weights");

  // ---- diagnostics ----
  report(batch, advantages, update, result.record);
  timer.finish();
  return result;
}

// DAPO's dynamic sampling (Yu et al. 2025, https://arxiv.org/abs/2503.14476): groups without spread teach nothing, so
// others are drawn in their place, at most max_refills times. They stay in the batch, for the reward's metrics.
StepBatch TrainLoop::take_batch(MetricRecord& record) {
  const AlgoSection& algo = parts_.config->algo;
  const int64_t wanted = parts_.config->train.num_prompts_per_step;
  StepBatch batch;
  int64_t missing = wanted, refills = 0;
  for (;; ++refills) {
    std::vector<RolloutGroup> groups = std::move(batch.groups);
    for (RolloutGroup& group : parts_.take_groups(counters_.next_serial, missing)) groups.push_back(std::move(group));
    counters_.next_serial += missing;
    batch = build_step_batch(std::move(groups), parts_.reward_weights);
    if (!algo.trains_on_rollouts() || !algo.filter_groups) return batch;
    missing = wanted - (batch.loss.num_groups() - parts_.algorithm->num_filtered(batch.loss));
    if (missing <= 0 || refills == algo.max_refills) break;
  }
  record.set("training/refills", static_cast<double>(refills));
  return batch;
}

// What frozen models, and the trained ones before the step, say about the batch.
void TrainLoop::add_model_outputs(StepBatch& batch, MetricRecord& record) const {
  const AlgoSection& algo = parts_.config->algo;
  const int64_t max_tokens = parts_.config->train.max_tokens_per_micro_batch;
  Stopwatch watch;
  const auto scored_by = [&](const TrainerModel& model, const char* timing) {
    const at::Tensor logprobs =
        completion_logprobs(model, batch, batch.all_completions(), max_tokens, temperature(), parts_.ranks);
    record.set(std::string("timing_s/") + timing, watch.restart());
    return logprobs;
  };
  // With one update a step, old is the policy's own forward pass held constant: no extra pass.
  if (algo.trains_on_rollouts() && needs_old_before_loss(algo))
    batch.loss.old_logprobs = scored_by(*parts_.policy, "old_log_prob");
  if (algo.needs_reference()) batch.loss.ref_logprobs = scored_by(*parts_.reference, "ref");
  if (algo.distill_coef > 0) batch.loss.teacher_logprobs = scored_by(*parts_.teacher, "teacher");
  if (algo.needs_critic()) {
    batch.loss.old_values = completion_values(*parts_.critic, batch, batch.all_completions(), max_tokens, parts_.ranks);
    record.set("timing_s/values", watch.restart());
  }
}

// clip_cov and kl_cov select tokens over the whole mini-batch, from a pass without gradient.
void TrainLoop::select_tokens(StepBatch& batch, const std::vector<int64_t>& mini_batch, int64_t update_index) const {
  if (!parts_.algorithm->needs_prepare()) return;
  const at::Tensor logprobs = completion_logprobs(
      *parts_.policy, batch, mini_batch, parts_.config->train.max_tokens_per_micro_batch, temperature(), parts_.ranks);
  const at::Tensor tokens = batch.loss.token_indices(mini_batch);
  LossBatch mini = batch.loss.select(mini_batch);
  SplitMix64 rng(static_cast<uint64_t>(parts_.config->run.seed) ^
                 static_cast<uint64_t>(counters_.policy_version) << 20 ^ static_cast<uint64_t>(update_index));
  parts_.algorithm->prepare(mini, logprobs.index_select(0, tokens), &rng);
  if (!batch.loss.selected.defined()) batch.loss.selected = at::zeros_like(batch.loss.mask);
  batch.loss.selected.index_copy_(0, tokens, mini.selected);
}

MetricSums TrainLoop::run_mini_batch(const StepBatch& batch, const std::vector<int64_t>& completions,
                                     Update& update) const {
  const GlobalCounts counts = global_counts(batch.loss.select(completions));
  const at::Tensor stays = batch.loss.stays.contiguous();
  const std::vector<bool> has_gradient = find_gradients(batch, completions);
  std::vector<int64_t> learning, constant;  // filtered groups are neither
  for (size_t k = 0; k < completions.size(); ++k)
    if (stays.const_data_ptr<bool>()[completions[k]]) (has_gradient[k] ? learning : constant).push_back(completions[k]);
  const PackOptions packing = pack_options();
  const auto own = [&](const std::vector<int64_t>& all) {
    return pack_micro_batches(batch, parts_.ranks.own(batch, all, packing.whole_groups), packing);
  };
  MetricSums metrics;
  {
    // Their gradient is zero: a forward pass is enough for the metrics.
    const at::NoGradGuard no_grad;
    const std::vector<MicroBatch> micro_batches = own(constant);
    const int64_t idle_passes = num_idle_passes(micro_batches);
    for (const MicroBatch& micro : micro_batches) metrics.merge(run_micro_batch(micro, batch, counts, update));
    idle_through(idle_passes, /*with_backward=*/false);
  }
  const std::vector<MicroBatch> micro_batches = own(learning);
  const int64_t idle_passes = num_idle_passes(micro_batches);
  for (size_t k = 0; k < micro_batches.size(); ++k) {
    // The last one completes the gradients: they are summed over the ranks while its backward goes on.
    if (k + 1 == micro_batches.size() && at::GradMode::is_enabled() && policy_sum_ &&
        parts_.ranks.data_parallel().size() > 1)
      parts_.policy->set_hooks(
          [this](int64_t block) { policy_sum_->block_done(block); },
          [this](const at::Tensor& ids, const at::Tensor& rows) { policy_sum_->looked_up(ids, rows); });
    metrics.merge(run_micro_batch(micro_batches[k], batch, counts, update));
    if (at::GradMode::is_enabled()) end_pass();
  }
  parts_.policy->set_hooks({}, {});
  idle_through(idle_passes, at::GradMode::is_enabled());
  if (at::GradMode::is_enabled()) sum_gradients(update);
  const std::string failure = parts_.ranks.first_error(update.failure);
  if (!failure.empty()) {
    forget_gradients();
    throw NumericsError("{}", failure);
  }
  return parts_.ranks.merge(metrics);
}

TrainerModel* TrainLoop::own_critic() const { return parts_.critic_optimizer == nullptr ? nullptr : parts_.critic; }

// Sharded models: how many more passes another rank makes over its micro-batches. Asked before the first of them.
int64_t TrainLoop::num_idle_passes(const std::vector<MicroBatch>& own) const {
  if (parts_.policy->shards() == nullptr) return 0;
  const auto passes = static_cast<int64_t>(own.size());
  return parts_.ranks.max(passes) - passes;
}

// The order is that of a real pass: forward() runs the policy first, and autograd goes back through what was recorded
// last.
void TrainLoop::idle_through(int64_t passes, bool with_backward) const {
  const TrainerModel* critic = own_critic();
  const bool asks_teacher = parts_.config->algo.distill_loss != DistillLoss::kNone;
  for (; passes > 0; --passes) {
    parts_.policy->shards()->idle_forward();
    if (critic != nullptr) critic->shards()->idle_forward();
    if (asks_teacher && parts_.teacher->shards() != nullptr) parts_.teacher->shards()->idle_forward();
    if (!with_backward) continue;
    if (critic != nullptr) critic->shards()->idle_backward();
    parts_.policy->shards()->idle_backward();
    end_pass();
  }
}

void TrainLoop::end_pass() const {
  if (parts_.policy->shards() == nullptr) return;
  parts_.policy->shards()->end_pass();
  if (const TrainerModel* critic = own_critic()) critic->shards()->end_pass();
}

// All ranks' gradients become the sums of theirs.
void TrainLoop::sum_gradients(Update& update) const {
  if (policy_sum_) update.wait_for_ranks_s += policy_sum_->finish();
  for (const TrainerModel* model : {parts_.policy, own_critic()})
    if (model != nullptr && model->shards() != nullptr) update.wait_for_ranks_s += model->shards()->take_wait_s();
  if (critic_sum_) update.wait_for_ranks_s += critic_sum_->finish();
  const Stopwatch watch;
  parts_.ranks.sum_over_replicas(parts_.optimizer->plan(), parts_.policy->own_gradients());
  if (const TrainerModel* critic = own_critic())
    parts_.ranks.sum_over_replicas(parts_.critic_optimizer->plan(), critic->own_gradients());
  update.wait_for_ranks_s += watch.seconds();
}

MetricSums TrainLoop::run_micro_batch(const MicroBatch& micro, const StepBatch& batch, const GlobalCounts& counts,
                                      Update& update) const {
  LossResult result = parts_.algorithm->loss(forward(micro), batch.loss.select(micro.completions), counts);
  const double loss = result.loss.item<double>();
  if (!std::isfinite(loss) && update.failure.empty())
    update.failure =
        format("stage {}, step {}: the loss is {}. Lower optim.learning_rate, or resume from an earlier checkpoint.",
               parts_.config->name, counters_.step + 1, loss);
  const int64_t rows = micro.packed.token_ids.numel();
  if (result.loss.requires_grad()) {
    result.loss.backward();
    update.num_gradient_rows += rows;
  }
  update.num_rows += rows;
  return std::move(result.metrics);
}

PolicyOutput TrainLoop::forward(const MicroBatch& micro) const {
  const AlgoSection& algo = parts_.config->algo;
  const TrainerModel& policy = *parts_.policy;
  const at::Tensor hidden = policy.hidden(micro);
  PolicyOutput output;
  if (algo.policy_loss == PolicyLoss::kRewardModel) {
    output.values = policy.values(hidden).to(kLossOptions);
    return output;
  }
  const TokenLogprobs tokens = policy.logprobs(hidden, micro, temperature(), algo.entropy_coef != 0);
  output.logprobs = tokens.logprobs.to(kLossOptions);
  output.entropies = tokens.entropies.to(kLossOptions);
  if (algo.needs_critic()) {
    const bool shared = parts_.critic == parts_.policy;
    output.values = parts_.critic->values(shared ? hidden : parts_.critic->hidden(micro)).to(kLossOptions);
  }
  if (algo.distill_loss != DistillLoss::kNone) {
    const at::Tensor teacher_hidden = [&] {
      const at::NoGradGuard no_grad;
      return parts_.teacher->hidden(micro);
    }();
    const auto divergence = [&algo](const at::Tensor& student, const at::Tensor& teacher) {
      return vocabulary_divergence(student, teacher, algo);
    };
    output.divergence =
        logits_loss(hidden, policy.network().head(), teacher_hidden, parts_.teacher->network().head(), divergence)
            .to(kLossOptions);
  }
  return output;
}

PackOptions TrainLoop::pack_options() const {
  const PolicyLoss loss = parts_.config->algo.policy_loss;
  return {.max_tokens = parts_.config->train.max_tokens_per_micro_batch,
          .whole_groups = is_preference_loss(loss),
          .row_of = loss == PolicyLoss::kRewardModel ? RowOf::kToken : RowOf::kPredictor};
}

// Stops a step's updates where the policy has left the one that it started from, as PPO's reference code does: the
// mini-batch that shows it is not learned from.
bool TrainLoop::drifted_too_far(const MetricSums& mini_batch) const {
  const double limit = parts_.config->algo.early_stop_kl;
  const MetricSum* ppo_kl = mini_batch.find("ppo_kl");
  if (limit == 0 || ppo_kl == nullptr || ppo_kl->result() <= limit) return false;
  forget_gradients();
  return true;
}

void TrainLoop::forget_gradients() const {
  for (const TrainerModel* model : {parts_.policy, own_critic()})
    if (model != nullptr)
      for (const FlatPart& part : model->own_gradients()) release_memory(part.elements);
}

void TrainLoop::apply_gradients(Update& update) {
  const bool own_critic = parts_.critic_optimizer != nullptr;
  const auto checked_norm = [&](const TrainerModel& model, const AdamW& optimizer, const char* whose) {
    const double norm = global_norm(parts_.ranks, optimizer.plan(), model.layout(), model.own_gradients());
    if (std::isfinite(norm)) return norm;
    forget_gradients();
    throw NumericsError(
        "stage {}, step {}: the norm of {} gradient is {}. Lower optim.learning_rate, or resume from an earlier "
        "checkpoint.",
        parts_.config->name, counters_.step + 1, whose, norm);
  };
  const auto learn = [&](const TrainerModel& model, AdamW& optimizer, double norm, double highest_rate) {
    OptimSection optim = parts_.config->optim;
    optim.learning_rate = highest_rate;
    const double limit = optim.max_grad_norm;
    const double scale = limit > 0 && norm > limit ? limit / (norm + 1e-6) : 1.0;
    const double rate = scheduled_learning_rate(optim, counters_.step + 1, parts_.config->train.max_steps);
    optimizer.step(model.own_parameters(), model.own_gradients(), rate, scale);
    if (!optimizer.plan().shards_weights())
      gather_parts(parts_.ranks.shard_group(), optimizer.plan(), "updated weights", model.parameters().flat());
    return rate;
  };
  update.grad_norm = checked_norm(*parts_.policy, *parts_.optimizer, "the");
  if (own_critic) update.critic_grad_norm = checked_norm(*parts_.critic, *parts_.critic_optimizer, "the critic's");
  update.learning_rate = learn(*parts_.policy, *parts_.optimizer, update.grad_norm, parts_.config->optim.learning_rate);
  if (own_critic) {
    learn(*parts_.critic, *parts_.critic_optimizer, update.critic_grad_norm, parts_.config->critic_learning_rate());
    parts_.critic->publish(counters_.policy_version + 1);
  }
  ++update.num_updates;
}

// Which completions have one: with zero advantages and no other term in the loss it is exactly zero.
std::vector<bool> TrainLoop::find_gradients(const StepBatch& batch, const std::vector<int64_t>& completions) const {
  const AlgoSection& algo = parts_.config->algo;
  std::vector<bool> found(completions.size(), true);
  if (!algo.trains_on_rollouts() || parts_.algorithm->kl_coef() > 0 || algo.entropy_coef != 0) return found;
  if (algo.needs_critic() || algo.distill_loss != DistillLoss::kNone || algo.policy_loss == PolicyLoss::kKlCov)
    return found;
  const std::vector<int64_t> offsets = batch.loss.offsets();
  const at::Tensor nonzero = batch.loss.advantages.ne(0);
  for (size_t k = 0; k < completions.size(); ++k)
    found[k] = nonzero.slice(0, offsets[completions[k]], offsets[completions[k] + 1]).any().item<bool>();
  return found;
}

// The adaptive controller's next coefficient, from the KL of this step.
void TrainLoop::update_kl_coef(const StepBatch& batch, const AdvantageReport& advantages, const Update& update) {
  const AlgoSection& algo = parts_.config->algo;
  if (algo.kl_ctrl.type != KlCtrlType::kAdaptive || !algo.needs_reference()) return;
  const std::optional<double> current = current_kl(advantages, update.metrics);
  if (!current) return;
  const auto summed = static_cast<double>(advantages.kl ? 1 : std::max<int64_t>(1, update.num_mini_batches));
  const auto completions = batch.loss.stays.sum().item<double>();
  parts_.algorithm->set_kl_coef(next_kl_coef(algo, parts_.algorithm->kl_coef(), *current / summed, completions));
}

double TrainLoop::temperature() const {
  return parts_.config->algo.trains_on_rollouts() ? parts_.config->rollout.temperature : 1.0;
}

std::vector<std::pair<std::string, double>> TrainLoop::evaluate(StepBatch batch) const {
  const at::NoGradGuard no_grad;
  MetricRecord record;
  add_model_outputs(batch, record);
  parts_.algorithm->advantages(batch.loss);
  Update update;
  return run_mini_batch(batch, batch.all_completions(), update).results();
}

void TrainLoop::report(const StepBatch& batch, const AdvantageReport& advantages, const Update& update,
                       MetricRecord& record) const {
  record.stage = parts_.config->name;
  record.step = counters_.step;
  record.policy_version = counters_.policy_version;
  record.time = seconds_since_epoch();
  for (const auto& [name, value] : advantages.metrics) record.set(name, value);
  // Sums belong to one mini-batch each: their mean over the step's.
  const double mini_batches = std::max<double>(1, static_cast<double>(update.num_mini_batches));
  for (const MetricSum& entry : update.metrics.entries())
    if (entry.logged) record.set(entry.name, entry.result() / (entry.reduction == Reduction::kSum ? mini_batches : 1));
  record.set("grad_norm", update.grad_norm);
  if (parts_.critic_optimizer != nullptr) record.set("critic/grad_norm", update.critic_grad_norm);
  record.set("learning_rate", update.learning_rate);
  const AlgoSection& algo = parts_.config->algo;
  if (algo.num_epochs * algo.num_minibatches > 1)
    record.set("training/num_updates", static_cast<double>(update.num_updates));
  if (algo.kl_ctrl.type == KlCtrlType::kAdaptive && algo.needs_reference()) record.set("kl_coef", update.kl_coef);
  if (algo.early_stop_kl > 0) record.set("training/stopped_early", update.stopped_early ? 1 : 0);
  add_batch_metrics(batch, counters_.policy_version - 1, record);
  const Ranks& ranks = parts_.ranks;
  const Ranks data = ranks.data_parallel();
  if (ranks.size() > 1) record.set("timing_s/wait_for_ranks", update.wait_for_ranks_s);
  add_throughput_metrics({data.sum(update.num_rows), data.sum(update.num_gradient_rows), batch.num_completion_tokens,
                          parts_.peak_flops * ranks.size()},
                         parts_.policy->config(), record);
}

double scheduled_learning_rate(const OptimSection& optim, int64_t step, int64_t max_steps) {
  const double highest = optim.learning_rate;
  if (step <= optim.warmup_steps) return highest * static_cast<double>(step) / static_cast<double>(optim.warmup_steps);
  const double total = static_cast<double>(std::max<int64_t>(1, max_steps - optim.warmup_steps));
  const double done = std::min(1.0, static_cast<double>(step - 1 - optim.warmup_steps) / total);
  switch (optim.lr_scheduler_type) {
    case LrScheduler::kConstant:
      return highest;
    case LrScheduler::kLinear:
      return highest * (1 - done);
    case LrScheduler::kCosine:
      return highest * 0.5 * (1 + std::cos(std::numbers::pi * done));
  }
  return highest;
}

}  // namespace temper
