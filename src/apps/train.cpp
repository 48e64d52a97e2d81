// temper train CONFIG: one rank of the trainer, the same stages as `temper run`. mpirun or srun starts the ranks;
// without a launcher it is a world of one.
#include <chrono>
#include <iostream>
#include <optional>
#include <thread>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/model_checks.h"
#include "apps/pipeline.h"
#include "apps/rank_world.h"
#include "config/load.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

CommOptions comm_options(const Config& config) {
  CommOptions options;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(config.train.comm_timeout_s * 1000));
  options.check_agreement = config.run.deterministic;
  return options;
}

void check_number_of_ranks(const Config& config, int started) {
  if (config.train.ranks > 1 && config.train.ranks != started)
    throw ConfigError("train.ranks = {}, but the launcher started {}. Start as many, or leave the key out.",
                      config.train.ranks, started);
}

// srun starts as many as it is told, but without PMIx none knows of the others: each would be a run of its own.
void check_alone_in_step() {
  if (const int64_t tasks = slurm_step_tasks(); tasks > 1)
    throw ConfigError(
        "srun started {} tasks without PMIx, so they cannot find each other. Start them with srun --mpi=pmix (srun "
        "--mpi=list shows whether this Slurm has it), or start one.",
        tasks);
}

// Before anything is made of them: every rank runs the same program on the same configuration.
void compare_ranks(const Ranks& ranks, const Config& config) {
  if (ranks.size() == 1) return;
  const std::vector<std::string> texts =
      ranks.communicator()->gather_texts("configuration", "version " TEMPER_VERSION "\n" + dump_toml(config));
  for (size_t r = 1; r < texts.size(); ++r) {
    if (texts[r] == texts[0]) continue;
    size_t begin = 0;
    for (size_t i = 0; i < texts[0].size() && texts[0][i] == texts[r][i]; ++i)
      if (texts[0][i] == '\n') begin = i + 1;
    const auto line = [begin](const std::string& text) { return text.substr(begin, text.find('\n', begin) - begin); };
    throw ConfigError("rank 0 has \"{}\", rank {} has \"{}\". Start all ranks with the same program and configuration.",
                      line(texts[0]), r, line(texts[r]));
  }
}

// Where `temper run` did not say it: the launcher has to start as many again.
std::string continue_command(const CommandLine& line, const std::string& command, int num_ranks) {
  if (line.given("continue-command")) return line.text("continue-command");
  if (!is_launched_by_mpi()) return command;
  return slurm_job().empty() ? format("mpirun -n {} {}", num_ranks, command)
                             : format("srun --mpi=pmix {} (submit the job again)", command);
}

int train(const Config& config, const PipelineOptions& options, const Ranks& ranks) {
  if (!ranks.leads()) set_terminal_log_level(LogLevel::kError);
  compare_ranks(ranks, config);
  return static_cast<int>(run_pipeline(config, options, ranks));
}

}  // namespace

int run_train(int argc, char** argv) {
  CommandLine line("train", "One rank of the trainer, started by mpirun or srun with as many others as there shall be.",
                   "CONFIG [--section.key=value …] [--stage.NAME.section.key=value …]");
  line.add_positional("CONFIG");
  line.add_flag("with-workers", "rank 0 starts rollout.workers beside itself, as temper run does");
  line.add_config_overrides();
  line.add_option("terminal-columns", "COUNT", "draw a progress bar of this width; `temper run` gives it", "0");
  line.add_option("continue-command", "TEXT", "what to type to continue the run, for messages; `temper run` gives it");
  const std::string typed = typed_command(argc, argv);
  if (!line.parse(argc, argv)) return 0;
  const Config config = load_config(line.text("CONFIG"), line.overrides());
  const std::string command = continuing(typed, config);
  std::vector<std::string> worker_arguments;
  if (line.flag("with-workers")) {
    worker_arguments = line.overrides();
    worker_arguments.insert(worker_arguments.begin(), line.text("CONFIG"));
  }
  const auto options = [&](int num_ranks) {
    return PipelineOptions{.continue_command = continue_command(line, command, num_ranks),
                           .worker_arguments = worker_arguments,
                           .terminal_columns = static_cast<int>(line.integer("terminal-columns"))};
  };
  if (!is_launched_by_mpi()) {
    check_alone_in_step();
    check_number_of_ranks(config, 1);
    check_models(config);
    return train(config, options(1), {});
  }
  MpiWorld world(comm_options(config));
  const auto end_all = [&](ExitCode code, const char* why) {
    std::cerr << "temper train: error: rank " << world.rank() << ": " << why << std::endl;
    // mpirun ends the others at once: the first rank shall have noted in status.json what it fails with, too.
    if (world.rank() > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
    world.abort(static_cast<int>(code));
  };
  try {
    const auto communicator = connect_ranks(world, config.stages.front().run.device, comm_options(config));
    check_number_of_ranks(config, communicator->size());
    check_models(config);
    return train(config, options(communicator->size()), Ranks(*communicator));
  } catch (const Error& error) {
    end_all(error.exit_code(), error.what());
  }
  return 0;  // not reached: abort() does not return
}

}  // namespace temper
