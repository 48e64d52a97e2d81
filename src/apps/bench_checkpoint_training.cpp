// temper bench checkpoint --with-training: rounds of two training steps, one alone and one while a checkpoint of the
// whole state, begun before it, is written in the background.
#include <ATen/ATen.h>

#include "apps/bench_checkpoint.h"
#include "apps/bench_model.h"
#include "apps/bench_trainer.h"
#include "checkpoint/manifest.h"
#include "checkpoint/paced_file_system.h"
#include "checkpoint/writer.h"
#include "core/clock.h"
#include "core/error.h"
#include "trainer/train_state.h"

namespace temper {
namespace {

double seconds_of_step(BenchTrainer& trainer) {
  const Stopwatch watch;
  trainer.step();
  return watch.seconds();
}

// As the stage does at a step with a checkpoint. Returns how long the training waited.
double begin_save(CheckpointWriter& writer, const TrainLoopParts& parts, int64_t step) {
  const Stopwatch watch;
  CheckpointState state{{}, HostState::of(parts).entries(), checkpoint_mesh(parts.ranks)};
  state.header.step = step;
  writer.begin(state);
  return watch.seconds();
}

double size_gb(FileSystem& files, const std::string& folder) {
  double bytes = 0;
  for (const std::string& name : list_folder(files, folder))
    bytes += static_cast<double>(File::open(files, folder + "/" + name).size_bytes());
  return bytes / 1e9;
}

}  // namespace

void bench_with_training(const CommandLine& line, const BenchReport& report) {
  const int64_t tokens = line.integer("tokens", 2, int64_t{1} << 30);
  const BenchWorkload work{.sequence_tokens = std::min<int64_t>(tokens, 512),
                           .step_tokens = tokens,
                           .micro_batch_tokens = std::min<int64_t>(tokens, 2048)};
  const ComputeType type = compute_type_of(line);
  if (type.weights != WeightFormat::kCompute) throw ConfigError("--dtype=int8 is for rollouts. Train in f32 or bf16.");
  BenchTrainer trainer(open_bench_masters(line), type, bench_stage(work), work, {});
  const int64_t limit_mb_per_s = line.integer("max-write-mb-per-s");
  PacedFileSystem files(limit_mb_per_s * 1'000'000);
  const std::string folder = line.text("dir") + "/bench_checkpoint-" + random_tag();
  make_folders(files, folder);
  CheckpointStore store(files, folder, 1 << 20);
  CheckpointWriter writer(store);
  std::vector<double> alone, beside, stalls, saves;
  double gb = 0;
  const int64_t rounds = line.integer("saves", 1, 1000);
  for (int64_t round = 0; round <= rounds; ++round) {  // the first compiles kernels and makes the staging buffers
    const double step_alone_s = seconds_of_step(trainer);
    const double stall_s = begin_save(writer, trainer.parts(), round);
    const Stopwatch save;
    const double step_beside_s = seconds_of_step(trainer);
    const bool ended = writer.ended();
    writer.finish();
    const std::string path = folder + "/" + step_name(round);
    gb = size_gb(files, path);
    remove_tree(files, path);
    report.print({{"round", static_cast<double>(round)},
                  {"step_alone_s", step_alone_s},
                  {"step_beside_save_s", step_beside_s},
                  {"stall_ms", stall_s * 1e3},
                  {"save_s", ended ? step_beside_s : save.seconds()}});  // at most, where it had ended by then
    if (round == 0) continue;
    alone.push_back(step_alone_s);
    beside.push_back(step_beside_s);
    stalls.push_back(stall_s);
    saves.push_back(ended ? step_beside_s : save.seconds());
  }
  remove_tree(files, folder);
  const double step_s = quantile(alone, 0.5);
  report.print({{"saves", static_cast<double>(rounds)},
                {"max_write_mb_per_s", static_cast<double>(limit_mb_per_s)},
                {"tokens", static_cast<double>(work.num_sequences() * work.sequence_tokens)},
                {"gb", gb},
                {"step_s", step_s},
                {"step_beside_save_s", quantile(beside, 0.5)},
                {"step_slowdown", quantile(beside, 0.5) / step_s},
                {"stall_ms_p50", quantile(stalls, 0.5) * 1e3},
                {"stall_ms_p99", quantile(stalls, 0.99) * 1e3},
                {"stall_share", quantile(stalls, 0.5) / step_s},
                {"save_s", quantile(saves, 0.5)}});
}

}  // namespace temper
