#include "trainer/step_metrics.h"

#include <ATen/ATen.h>
#include <sys/resource.h>

#include <algorithm>

#include "model/device.h"
#include "model/matmul.h"

namespace temper {

std::vector<std::vector<int64_t>> split_in_order(const StepBatch& batch, int64_t parts) {
  const int64_t num_groups = batch.loss.num_groups();
  std::vector<std::vector<int64_t>> split;
  int64_t group = 0, completion = 0;
  for (int64_t part = 0; part < parts; ++part) {
    std::vector<int64_t> taken;
    for (const int64_t end = num_groups * (part + 1) / parts; group < end; ++group)
      for (int64_t i = 0; i < batch.loss.group_sizes[group]; ++i) taken.push_back(completion++);
    if (!taken.empty() || parts == 1) split.push_back(std::move(taken));
  }
  return split;
}

void add_batch_metrics(const StepBatch& batch, PolicyVersion trainer_version, MetricRecord& record) {
  record.set("num_tokens", static_cast<double>(batch.num_prompt_tokens + batch.num_completion_tokens));
  const auto& lengths = batch.loss.lengths;
  const double count = std::max<double>(1, static_cast<double>(lengths.size()));
  const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
  record.set("completions/mean_length", static_cast<double>(batch.num_completion_tokens) / count);
  record.set("completions/min_length", lengths.empty() ? 0 : static_cast<double>(*shortest));
  record.set("completions/max_length", lengths.empty() ? 0 : static_cast<double>(*longest));
  const auto& truncated = batch.loss.truncated;
  record.set("completions/clipped_ratio",
             static_cast<double>(std::count(truncated.begin(), truncated.end(), 1)) / count);
  record.set("training/completions_failed", static_cast<double>(batch.num_failed));
  record.set("training/groups_failed", static_cast<double>(batch.num_groups_failed));

  double sum = 0;
  int64_t seen = 0, mixed = 0;
  PolicyVersion least = 0, most = 0;
  for (const auto& sequence : batch.sequences) {
    const auto& versions = batch.groups[sequence.group].completions[sequence.index].policy_versions;
    if (versions.empty()) continue;
    const auto [oldest, newest] = std::minmax_element(versions.begin(), versions.end());
    const PolicyVersion staleness = trainer_version - *oldest;
    if (*newest > *oldest) ++mixed;
    least = seen == 0 ? staleness : std::min(least, staleness);
    most = seen == 0 ? staleness : std::max(most, staleness);
    sum += static_cast<double>(staleness);
    ++seen;
  }
  if (seen == 0) return;
  record.set("training/off_policy/trajectory_staleness/min", static_cast<double>(least));
  record.set("training/off_policy/trajectory_staleness/mean", sum / static_cast<double>(seen));
  record.set("training/off_policy/trajectory_staleness/max", static_cast<double>(most));
  record.set("training/off_policy/mixed_versions", static_cast<double>(mixed) / static_cast<double>(seen));
}

void add_throughput_metrics(const StepWork& work, const ModelConfig& config, MetricRecord& record) {
  const double update_s = *record.find("timing_s/update_actor");
  const auto rows = static_cast<double>(work.forward_rows);
  record.set("perf/throughput", update_s > 0 ? rows / update_s : 0);  // tokens a second through the trainer
  if (const double* gen_s = record.find("timing_s/gen"); gen_s != nullptr && *gen_s > 0)
    record.set("perf/rollout_tokens_per_s", static_cast<double>(work.completion_tokens) / *gen_s);
  if (work.peak_flops > 0 && update_s > 0) {
    // 2 operations a weight and row forward, 4 more backward; the head on completion tokens only, attention left out.
    const double head = static_cast<double>(config.vocab_size * config.hidden_size);
    const double body = static_cast<double>(num_parameters(config)) - head * (config.tie_word_embeddings ? 1 : 2);
    const double share = rows > 0 ? static_cast<double>(work.backward_rows) / rows : 0;
    const double flops = (2 + 4 * share) * (body * rows + head * static_cast<double>(work.completion_tokens));
    record.set("perf/mfu", flops / (update_s * work.peak_flops));
  }
  record.set("perf/max_memory_allocated_gb", peak_memory_gb());
}

double measure_peak_flops(const ModelConfig& config, at::ScalarType compute, at::Device device) {
  const bool cpu = device.is_cpu();
  const int64_t rows = cpu ? 1024 : 8192, inputs = cpu ? config.hidden_size : 8192;
  const int64_t outputs = cpu ? config.intermediate_size : 8192;
  const auto options = at::TensorOptions(device);
  PackedMatrix matrix;
  matrix.pack(at::randn({outputs, inputs}, options), compute);
  const at::Tensor x = at::randn({rows, inputs}, options).to(compute);
  const auto multiply = [&] {
    matrix.multiply(x, compute);
    synchronize(device);
  };
  multiply();
  double best = 0;
  for (Stopwatch whole; whole.seconds() < 0.1;) {
    const Stopwatch watch;
    multiply();
    best = std::max(best, 2.0 * static_cast<double>(rows * inputs * outputs) / watch.seconds());
  }
  return best;
}

double peak_memory_gb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1024.0 * 1024.0);
}

}  // namespace temper
