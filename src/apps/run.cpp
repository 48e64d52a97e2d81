// temper run CONFIG: the whole pipeline of a configuration on this machine.
#include <iostream>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/memory_plan.h"
#include "apps/model_checks.h"
#include "apps/pipeline.h"
#include "apps/rank_launcher.h"
#include "config/load.h"
#include "config/stage_models.h"
#include "core/log.h"

namespace temper {
namespace {

void print_plan(const Config& config) {
  std::cout << dump_toml(config);
  for (size_t i = 0; i < config.stages.size(); ++i) {
    StageConfig stage = config.stages[i];
    const ModelSection& origin = origin_model(config, i);
    stage.model.init = origin.init;
    const ModelConfig model = stage_model_config(stage, origin.path);
    std::cout << "\n# memory of stage " << stage.name << " (" << num_parameters(model) << " parameters)\n";
    const std::string table = plan_memory(stage, model).table();
    for (size_t begin = 0; begin < table.size();) {
      const size_t end = table.find('\n', begin);
      std::cout << "#" << table.substr(begin, end - begin) << "\n";
      begin = end + 1;
    }
  }
  // What does not fit is refused here too.
  for (size_t i = 0; i < config.stages.size(); ++i)
    if (config.stages[i].own_model) refuse_if_too_large(config.stages[i], config.stages[i].model.path);
}

}  // namespace

int run_run(int argc, char** argv) {
  CommandLine line("run", "Runs the stages of a configuration, or goes on where an earlier run of it stopped.",
                   "CONFIG [--section.key=value …] [--stage.NAME.section.key=value …]");
  line.add_positional("CONFIG");
  line.add_config_overrides();
  line.add_flag("dry-run", "print the resolved configuration and the memory it takes, and stop");
  const std::string typed = typed_command(argc, argv);
  if (!line.parse(argc, argv)) return 0;
  const Config config = load_config(line.text("CONFIG"), line.overrides());
  check_models(config);
  if (line.flag("dry-run")) {
    for (const std::string& warning : config.warnings) log_warning("{}", warning);
    print_plan(config);
    return 0;
  }
  const std::string command = continuing(typed, config);
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (config.train.ranks > 1) {
    arguments.push_back("--continue-command=" + command);
    return run_ranks(config, std::move(arguments));
  }
  return static_cast<int>(run_pipeline(config, {command, arguments}));
}

}  // namespace temper
