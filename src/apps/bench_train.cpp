// temper bench train: how fast a step of training is, beside the time of its matrix products alone; with --ranks, how
// much of the sums over the ranks hides behind the backward pass, over a link as fast as wanted.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "apps/bench.h"
#include "apps/bench_model.h"
#include "apps/bench_trainer.h"
#include "apps/choice_option.h"
#include "apps/rank_world.h"
#include "apps/training_gemm_limit.h"
#include "comm/thread_communicator.h"
#include "core/error.h"
#include "core/system_memory.h"
#include "model/device.h"
#include "trainer/step_metrics.h"

namespace temper {
namespace {

StageConfig make_config(const CommandLine& line, const BenchWorkload& work) {
  StageConfig config = bench_stage(work);
  config.train.recompute = line.flag("recompute");
  config.train.shard = choice_of<Shard>(line, "shard");
  config.train.replicas = line.integer("replicas", 1, 1 << 16);
  config.train.tensor_parallel = line.integer("tensor-parallel", 1, 1 << 10);
  return config;
}

double find(const MetricRecord& record, const char* name) {
  const double* value = record.find(name);
  return value == nullptr ? 0 : *value;
}

// The measured steps of one rank.
struct Course {
  std::vector<MetricRecord> records;
  double link_busy_s = 0;     // of the simulated link
  double loading_gb = 0;      // of the process, until the model was there
  double peak_rss_gb = 0;     // of the process, while they ran
  double peak_device_gb = 0;  // of a GPU's tensors
};

struct Measurement {
  ComputeType type;
  StageConfig config;
  BenchWorkload work;
  double seconds = 0;
};

// Of the rank that came last to the sums: what the others wait longer, they wait for it.
double least_wait(const Ranks& ranks, double seconds) {
  if (ranks.size() == 1) return seconds;
  const at::Tensor least = at::full({1}, seconds, at::kDouble);
  ranks.communicator()->all_reduce("least wait", least, ReduceOp::kMin).wait();
  return least.item<double>();
}

Course run_rank(const ModelWeights& model, const Measurement& what, const Ranks& all_ranks,
                const std::function<double()>& link_busy_s) {
  const Ranks ranks =
      all_ranks.with_tensor_parallel(what.config.train.tensor_parallel).with_replicas(what.config.train.replicas);
  BenchTrainer trainer(model, what.type, what.config, what.work, ranks);
  Course course;
  course.loading_gb = static_cast<double>(peak_rss_bytes()) / 1e9;
  trainer.step();  // compiles kernels, touches memory
  ranks.wait_for_all("warm");
  reset_peak_rss();
  const double busy_before = link_busy_s();
  double measured = 0;
  for (bool more = true; more;) {
    MetricRecord record = trainer.step();
    record.set("timing_s/wait_for_ranks", least_wait(ranks, find(record, "timing_s/wait_for_ranks")));
    measured += find(record, "timing_s/step");
    course.records.push_back(std::move(record));
    more = ranks.any(ranks.leads() && measured < what.seconds);
  }
  course.link_busy_s = link_busy_s() - busy_before;
  course.peak_device_gb = static_cast<double>(peak_device_bytes(what.type.device)) / 1e9;
  course.peak_rss_gb = static_cast<double>(peak_rss_bytes()) / 1e9;
  return course;
}

// The first rank's course.
Course run_threads(const ModelWeights& model, const Measurement& what, int num_ranks, const SimulatedLink& link) {
  const int threads = std::max(1, at::get_num_threads() / num_ranks);
  Course course;
  ThreadWorld world(num_ranks, {}, link);
  std::exception_ptr failure;
  std::vector<std::thread> ranks;
  for (int r = 0; r < num_ranks; ++r)
    ranks.emplace_back([&, r] {
      at::set_num_threads(threads);
      const auto communicator = world.communicator(r);
      try {
        Course mine =
            run_rank(model, what, num_ranks > 1 ? Ranks(*communicator) : Ranks(), [&world] { return world.busy_s(); });
        if (r == 0) course = std::move(mine);
      } catch (const std::exception& error) {
        communicator->abort(error.what());
        if (r == 0) failure = std::current_exception();
      }
    });
  for (std::thread& rank : ranks) rank.join();
  if (failure) std::rethrow_exception(failure);
  return course;
}

std::vector<double> values_of(const std::vector<MetricRecord>& records, const char* name) {
  std::vector<double> values;
  for (const MetricRecord& record : records) values.push_back(find(record, name));
  return values;
}

void declare_bench_train_options(CommandLine& line) {
  declare_bench_model(line);
  line.add_flag("fake-data", "random tokens, which is what this bench always takes");
  line.add_option("seq-len", "TOKENS", "length of each sequence", "512");
  line.add_option("tokens", "TOKENS", "of one step", "2048");
  line.add_option("micro-batch-tokens", "TOKENS", "of one forward and backward pass", "2048");
  line.add_flag("recompute", "as train.recompute");
  line.add_option("shard", "none|optimizer|full", "as train.shard", "none");
  line.add_option("replicas", "N", "as train.replicas", "1");
  line.add_option("tensor-parallel", "N", "as train.tensor_parallel", "1");
  line.add_option("ranks", "N", "threads, where no launcher has started processes; they share the cores out", "1");
  line.add_option("link-gb-s", "GB/S", "bandwidth of the simulated link among them; 0: no limit", "0");
  line.add_option("link-latency-us", "US", "its latency", "0");
  line.add_option("seconds", "S", "measure at least this long", "10");
}

}  // namespace

int run_bench_train(int argc, char** argv) {
  CommandLine line("bench train", "Measures training: SFT steps on random tokens.", "--model DIR | --preset 135m");
  declare_bench_train_options(line);
  if (!line.parse(argc, argv)) return 0;
  const BenchWorkload work{.sequence_tokens = line.integer("seq-len", 2, 1 << 20),
                           .step_tokens = line.integer("tokens", 2, int64_t{1} << 30),
                           .micro_batch_tokens = line.integer("micro-batch-tokens", 1, int64_t{1} << 30)};
  const SimulatedLink link{.latency_s = line.number("link-latency-us") * 1e-6, .gb_per_s = line.number("link-gb-s")};
  std::optional<MpiWorld> world;
  std::unique_ptr<Communicator> communicator;
  if (is_launched_by_mpi()) {
    world.emplace();
    communicator = connect_ranks(*world, device_of(line));
  }
  const ModelWeights model = open_bench_masters(line);
  const ModelConfig shape = model.config;
  const Measurement what{compute_type_of(line), make_config(line, work), work, line.number("seconds")};
  if (what.type.weights != WeightFormat::kCompute)
    throw ConfigError("--dtype=int8 is for rollouts. Train in f32 or bf16.");
  if (work.sequence_tokens > shape.max_position_embeddings)
    throw ConfigError("--seq-len={} exceeds the model's context of {}.", work.sequence_tokens,
                      shape.max_position_embeddings);

  keep_freed_memory();
  const BenchReport report(argc, argv, what.type.device);
  const auto num_ranks = communicator ? communicator->size() : static_cast<int>(line.integer("ranks", 1, 64));
  const Course course = communicator    ? run_rank(model, what, Ranks(*communicator), [] { return 0.0; })
                        : num_ranks > 1 ? run_threads(model, what, num_ranks, link)
                                        : run_rank(model, what, {}, [] { return 0.0; });
  if (communicator && communicator->rank() > 0) return 0;
  const double step_s = quantile(values_of(course.records, "timing_s/step"), 0.5);
  const auto tokens = static_cast<double>(work.num_sequences() * work.sequence_tokens);
  BenchFields fields = {{"tokens_per_s", tokens / step_s},
                        {"step_s", step_s},
                        {"update_s", quantile(values_of(course.records, "timing_s/update_actor"), 0.5)},
                        {"mfu", quantile(values_of(course.records, "perf/mfu"), 0.5)},
                        {"ranks", num_ranks},
                        {"loading_memory_gb", course.loading_gb},
                        {"peak_memory_gb", course.peak_rss_gb}};  // of the process: of all ranks where they are threads
  if (!what.type.device.is_cpu()) fields.emplace_back("peak_device_memory_gb", course.peak_device_gb);
  if (num_ranks == 1) {
    const int64_t of_micro_batch = std::max(work.micro_batch_tokens / work.sequence_tokens, int64_t{1});
    const int64_t rows = std::min(work.num_sequences(), of_micro_batch) * work.sequence_tokens;
    const double products = TrainingGemmLimit(shape, what.type.compute, what.type.device).seconds(rows);
    fields.emplace_back("gemm_limit_share", products * tokens / static_cast<double>(rows) / step_s);
  } else {
    const double exposed = quantile(values_of(course.records, "timing_s/wait_for_ranks"), 0.5);
    fields.emplace_back("comm_exposed_s", exposed);
    if (course.link_busy_s > 0) {
      const double busy = course.link_busy_s / static_cast<double>(course.records.size());
      fields.emplace_back("link_busy_s", busy);
      fields.emplace_back("comm_hidden_share", std::max(0.0, 1 - exposed / busy));
    }
  }
  fields.emplace_back("steps", course.records.size());
  report.print(fields);
  return 0;
}

}  // namespace temper
