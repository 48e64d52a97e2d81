// The diagnostics of a training step: timings, lengths, staleness, throughput. Names are those of docs/metrics.md.
#pragma once
#include <string_view>
#include <vector>

#include "core/clock.h"
#include "core/metric_record.h"
#include "model/model_config.h"
#include "trainer/step_batch.h"

namespace temper {

// Wall time of the phases of a step, as timing_s/NAME, and of the whole.
class StepTimer {
 public:
  explicit StepTimer(MetricRecord& record) : record_(record) {}
  void lap(std::string_view phase) { record_.set("timing_s/" + std::string(phase), lap_.restart()); }
  void skip() { lap_.restart(); }  // a phase that recorded itself
  void finish() { record_.set("timing_s/step", whole_.seconds()); }

 private:
  MetricRecord& record_;
  Stopwatch whole_, lap_;
};

// The batch's completions in `parts` runs of whole groups, in order, about equally many groups each; empty runs are
// left out.
std::vector<std::vector<int64_t>> split_in_order(const StepBatch& batch, int64_t parts);

// completions/*, num_tokens, training/*, training/off_policy/trajectory_staleness/*.
void add_batch_metrics(const StepBatch& batch, PolicyVersion trainer_version, MetricRecord& record);

struct StepWork {
  int64_t forward_rows = 0;
  int64_t backward_rows = 0;
  int64_t completion_tokens = 0;
  double peak_flops = 0;
};

// perf/*: REQUIRES timing_s/update_actor in the record, and timing_s/gen where something was generated.
void add_throughput_metrics(const StepWork& work, const ModelConfig& config, MetricRecord& record);

// Floating-point operations a second of a large matrix product, measured in about 0.1 s: on the CPU of the model's
// shapes, on a GPU of one that fills it.
double measure_peak_flops(const ModelConfig& config, at::ScalarType compute, at::Device device);

double peak_memory_gb();  // resident, of this process, GiB

}  // namespace temper
