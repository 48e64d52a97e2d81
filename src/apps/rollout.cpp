// temper rollout CONFIG: one rollout worker. It looks for the run's hub, works for it, and when that hub is gone looks
// for the next one: of the trainer started again, or of a later stage.
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <thread>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/hub_contract.h"
#include "apps/model_source.h"
#include "apps/rollout_stack.h"
#include "apps/run_directory.h"
#include "apps/stage_data.h"
#include "comm/hub_file.h"
#include "config/load.h"
#include "config/stage_models.h"
#include "core/error.h"
#include "core/files.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/log_context.h"
#include "core/process.h"
#include "model/device.h"
#include "rollout/rollout_loop.h"

namespace temper {
namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(200);
constexpr auto kSayEvery = std::chrono::seconds(30);

bool serves_hub(const StageConfig& stage) { return stage.uses_hub(); }

// Where the hub is: written by the trainer in the run directory, or given by the user.
class HubFinder {
 public:
  HubFinder(const CommandLine& line, const Config& config) : config_(config) {
    const std::string hub = line.given("hub") ? line.text("hub") : "";
    if (hub.starts_with("tcp://")) {
      given_ = HubFile{.address = hub, .public_key = "", .stage = given_stage(line)};
      if (!is_plain_text(config.stages.front())) given_->public_key = given_key(line);
    } else {
      path_ = hub.empty() ? hub_file_path(config.run_dir()) : hub;
    }
  }

  // The present hub, if it is another than the one of `epoch`; nothing while there is none.
  std::optional<HubFile> look(int64_t epoch) const {
    if (given_) return given_;
    if (!file_exists(path_)) return std::nullopt;
    HubFile found = read_hub_file(path_);
    if (found.epoch == epoch || why_stale(found)) return std::nullopt;
    return found;
  }

  // Waits for it; nothing: asked to stop.
  std::optional<HubFile> wait(int64_t epoch) const {
    auto said = std::chrono::steady_clock::now();
    bool first = true;
    while (!stop_requested()) {
      if (auto found = look(epoch)) return found;
      if (first || std::chrono::steady_clock::now() - said > kSayEvery) {
        log_info("waiting for a hub: {} names none that runs", path_);
        said = std::chrono::steady_clock::now();
        first = false;
      }
      std::this_thread::sleep_for(kLookEvery);
    }
    return std::nullopt;
  }

  bool is_given() const { return given_.has_value(); }

 private:
  std::string given_stage(const CommandLine& line) const {
    if (line.given("stage")) return line.text("stage");
    std::vector<std::string> names;
    for (const StageConfig& stage : config_.stages)
      if (serves_hub(stage)) names.push_back(stage.name);
    if (names.size() != 1)
      throw ConfigError("--hub={}: {} stages of the configuration train on rollouts of workers. Name one with --stage.",
                        line.text("hub"), names.size());
    return names.front();
  }

  std::string given_key(const CommandLine& line) const {
    if (line.given("hub-key")) return line.text("hub-key");
    const std::string file =
        (line.given("keys") ? line.text("keys") : key_folder(config_.stages.front(), config_.run_dir())) + "/hub.key";
    if (file_exists(file)) return read_key_pair(file).public_key;
    throw ConfigError(
        "--hub={} needs the hub's public key: give --hub-key=KEY (public_key in the run's hub.json), or name a "
        "hub.json "
        "by --hub.",
        line.text("hub"));
  }

  const Config& config_;
  std::string path_;
  std::optional<HubFile> given_;
};

// What a stage's worker generates with; weights come from the trainer.
struct StageWorker {
  StageConfig stage;
  ModelShape shape;
  std::optional<Task> task;
  std::unique_ptr<Transformer> model;

  StageWorker(const Config& config, const std::string& name) {
    const auto index = stage_index(config, name);
    if (!index || !serves_hub(config.stages[*index]))
      throw ConfigError("the hub serves stage {}, which {}. Start worker and trainer with one configuration.", name,
                        index ? "uses no workers in this configuration" : "this configuration does not have");
    stage = config.stages[*index];
    const ModelSection& origin = origin_model(config, *index);
    shape = load_model_shape(origin.path, origin.init);
    shape.config.value_head = false;
    task = make_task(stage.data);
    const ComputeType type = rollout_type(stage);
    model = std::make_unique<Transformer>(shape.config, type.compute, /*trainable=*/false, type.weights, type.device);
  }
};

RolloutLoopOptions loop_options(const StageWorker& worker, const HubFile& hub, const std::string& keys,
                                const std::string& name) {
  const StageConfig& stage = worker.stage;
  RolloutLoopOptions options;
  options.hub = hub.address;
  options.run_id = hub.run_id;
  if (!is_plain_text(stage)) options.keys = read_client_keys(keys, hub.public_key);
  options.channel = hub_channel(stage);
  options.weight_links = weight_links(stage, worker.model->device());
  options.engine = engine_options(stage.rollout);
  options.reward_timeout_s = stage.reward.timeout_s;
  options.environment = stage.rollout.environment;
  options.max_turns = stage.rollout.max_turns;
  const int64_t groups = stage.rollout.max_num_seqs / stage.rollout.num_generations;
  options.worker = {.name = name,
                    .build = build_identity(),
                    .model = model_identity(worker.shape.config, *worker.shape.tokenizer),
                    .config = config_identity(stage),
                    .max_leases = static_cast<int32_t>(std::max<int64_t>(1, groups)),
                    .in_flight_updates = stage.async.in_flight_updates,
                    .seed = std::random_device()()};
  return options;
}

std::string worker_name(const CommandLine& line) {
  return line.given("name") ? line.text("name") : format("{}/{}", host_name(), static_cast<int64_t>(::getpid()));
}

// With the other processes' logs, where this machine sees the run directory.
void keep_log(const CommandLine& line, const Config& config) {
  const std::string name = worker_name(line);
  set_log_context(format("worker={}", name));
  if (line.given("log-file")) {
    set_log_file(line.text("log-file"));
    set_terminal_log_level(LogLevel::kOff);
    return;
  }
  const std::string logs = config.run_dir() + "/logs";
  if (!file_exists(logs)) return;
  std::string file = name;
  std::replace(file.begin(), file.end(), '/', '_');
  set_log_file(format("{}/worker_{}.log", logs, file));
}

// Works for one hub after the other until none is to be expected.
int work(const Config& config, const CommandLine& line) {
  const HubFinder finder(line, config);
  const std::string name = worker_name(line);
  const std::string keys = line.given("keys") ? line.text("keys") : key_folder(config.stages.front(), config.run_dir());
  std::optional<StageWorker> worker;
  int64_t epoch = 0;
  while (const auto hub = finder.wait(epoch)) {
    epoch = hub->epoch;
    if (!worker || worker->stage.name != hub->stage) worker.emplace(config, hub->stage);
    log_info("rollout worker {}: stage {}, hub {}", name, hub->stage, hub->address);
    StageConfig located = worker->stage;
    locate_models(config, located);
    RolloutLoop loop(*worker->model, *worker->shape.tokenizer, make_stage_rewards(located, worker->task),
                     loop_options(*worker, *hub, keys, name));
    const auto moved = [&] { return !finder.is_given() && finder.look(epoch).has_value(); };
    switch (loop.run(stop_requested, moved)) {
      case RolloutLoop::End::kStopped:
        log_info("stopped on request, what was begun is handed back");
        return 0;
      case RolloutLoop::End::kHubDone: {
        const auto served = stage_index(config, hub->stage).value();
        const auto later = config.stages.begin() + static_cast<std::ptrdiff_t>(served) + 1;
        log_info("stage {} is over", hub->stage);
        if (finder.is_given() || std::none_of(later, config.stages.end(), serves_hub)) return 0;
        break;
      }
      case RolloutLoop::End::kHubMoved:
        break;
    }
  }
  return 0;
}

}  // namespace

int run_rollout(int argc, char** argv) {
  CommandLine line("rollout",
                   "One rollout worker: generates and scores completions for the trainer of a run. It may join and "
                   "leave at any time.",
                   "CONFIG [--hub tcp://HOST:PORT|hub.json] [--keys DIR] [--section.key=value …]");
  line.add_positional("CONFIG");
  line.add_option("hub", "ADDRESS|FILE", "the hub's address, or a hub.json (default: the one in the run directory)");
  line.add_option("hub-key", "KEY", "the hub's public key, where --hub is an address");
  line.add_option("keys", "DIR", "folder with worker.key (default: async.keys, or keys in the run directory)");
  line.add_option("stage", "NAME", "the stage to work for, where --hub is an address and several stages take workers");
  line.add_option("name", "NAME", "of this worker, the same when it is started again (default: HOST/PID)");
  line.add_option("log-file", "FILE",
                  "where its log lines go, instead of to standard error and logs/worker_NAME.log of the run directory");
  line.add_config_overrides();
  if (!line.parse(argc, argv)) return 0;
  const Config config = load_config(line.text("CONFIG"), line.overrides());
  if (std::none_of(config.stages.begin(), config.stages.end(), serves_hub))
    throw ConfigError("{}: no stage takes rollout workers. Set rollout.source = \"hub\", or rollout.workers.",
                      line.text("CONFIG"));
  keep_log(line, config);
  install_stop_handlers();
  set_deterministic(config.run.deterministic);
  return work(config, line);
}

}  // namespace temper
