#include "apps/hub_rollouts.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <random>
#include <set>

#include "apps/hub_contract.h"
#include "apps/model_source.h"
#include "comm/hub_file.h"
#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "core/interrupt.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int64_t kWorkerTimeoutMs = 10000;  // a worker says something each second, whatever its engine does

// Names of runs are not unique on a host that workers of several runs share.
std::string new_run_id() {
  std::random_device random;
  return hex64(uint64_t{random()} << 32 | random());
}

// Epochs rise through all stages and starts of a run: the last one stands beside the logs of groups.
std::string epoch_file(const std::string& run_directory) { return run_directory + "/groups/epoch"; }

int64_t next_epoch(const std::string& run_directory) {
  const std::string path = epoch_file(run_directory);
  const std::string text = file_exists(path) ? read_file(path) : "0";
  int64_t last = -1;
  std::from_chars(text.data(), text.data() + text.size(), last);
  if (last < 0) throw FormatError("{}: holds no number. Write one greater than every epoch of the run into it.", path);
  return last + 1;
}

// HOST or HOST:PORT; the port is the hub's, weight servers take free ones.
std::string address_of(const std::string& bind, bool with_port) {
  const size_t colon = bind.rfind(':');
  const bool has_port = colon != std::string::npos && bind.find(']', colon) == std::string::npos;
  if (has_port && with_port) return "tcp://" + bind;
  return "tcp://" + bind.substr(0, has_port ? colon : std::string::npos) + ":*";
}

std::optional<ServerKeys> server_keys(const HubRollouts::Options& options, const Ranks& ranks) {
  if (is_plain_text(options.stage)) return std::nullopt;
  const std::string folder = key_folder(options.stage, options.run_directory);
  ranks.lead([&] { make_job_keys_if_missing(folder); });
  return read_server_keys(folder);
}

// Workers quantise as the trainer would: from f32.
at::ScalarType wire_type(const ComputeType& rollouts) {
  return rollouts.weights == WeightFormat::kInt8 ? at::kFloat : rollouts.compute;
}

HubOptions hub_options(const HubRollouts::Options& options, const ModelConfig& model) {
  const StageConfig& stage = options.stage;
  HubOptions hub;
  hub.build = build_identity();
  hub.model = model_identity(model, *options.tokenizer);
  hub.config = config_identity(stage);
  hub.staleness = {.max_staleness = stage.async.max_staleness,
                   .groups_per_step = stage.train.num_prompts_per_step,
                   .policy = stage.async.staleness_policy};
  hub.worker_timeout_ms = kWorkerTimeoutMs;
  hub.lease_timeout_ms = static_cast<int64_t>(stage.async.lease_timeout_s * 1000);
  hub.num_rewards = static_cast<int64_t>(stage.reward.functions.size());
  hub.vocab_size = model.vocab_size;
  return hub;
}

}  // namespace

HubRollouts::HubRollouts(Options options, TrainerModel& policy, const TrainCounters& counters, const Ranks& ranks)
    : ranks_(ranks),
      policy_(policy),
      hub_file_(hub_file_path(options.run_directory)),
      version_(counters.policy_version) {
  const StageConfig& stage = options.stage;
  WeightServerOptions serving;
  serving.allow_plain_text = is_plain_text(stage);
  serving.links = weight_links(stage, policy.network().device());
  if (stage.async.weight_transport == WeightTransport::kNccl && !serving.links)
    throw ConfigError(
        "async.weight_transport = nccl: the trainer computes on its CPU. Train on GPUs, or use messages.");
  const auto keys = server_keys(options, ranks);
  weights_ = std::make_unique<WeightServer>(address_of(stage.async.bind, /*with_port=*/false), keys, serving);
  publisher_ = std::make_unique<WeightPublisher>(*weights_, policy.config(), wire_type(rollout_type(stage)), ranks);

  std::vector<std::string> addresses = {weights_->address()};
  if (ranks.size() > 1) addresses = ranks.communicator()->gather_texts("weight servers", weights_->address());
  if (ranks.leads()) {
    HubServiceOptions service{.address = address_of(stage.async.bind, /*with_port=*/true),
                              .keys = keys,
                              .channel = hub_channel(stage),
                              .hub = hub_options(options, policy.config()),
                              .log_path = options.run_directory + "/groups/" + stage.name + ".log",
                              .at_least_epoch = next_epoch(options.run_directory)};
    service.hub.weights_endpoints = addresses;
    make_directories(options.run_directory + "/groups");
    service_ = std::make_unique<HubService>(std::move(service), counters.policy_version);
    epoch_ = service_->epoch();
    write_file_atomically(epoch_file(options.run_directory), std::to_string(epoch_));
  }
  if (ranks.size() > 1)
    epoch_ = std::stoll(ranks.communicator()->gather_texts("epoch", std::to_string(epoch_)).front());

  policy.set_publisher(
      {.copy = [this](int64_t block, const FlatParameters& masters) { publisher_->copy(block, masters); },
       .publish = [this](PolicyVersion version) { publish(version); }});
  policy.publish(counters.policy_version);
  if (service_) {
    HubFile file{.address = service_->address(),
                 .public_key = keys ? keys->own.public_key : "",
                 .weight_addresses = addresses,
                 .run_id = new_run_id(),
                 .stage = stage.name,
                 .epoch = epoch_};
    write_hub_file(hub_file_, std::move(file));
    log_info("hub at {}, epoch {}: rollout workers find it by {}", service_->address(), epoch_, hub_file_);
  }
  source_ = std::make_unique<HubSource>(service_.get(), ranks, std::move(options.check), stop_requested);
  const FeedOptions feed{.groups_per_step = stage.train.num_prompts_per_step,
                         .max_staleness = stage.async.max_staleness,
                         .num_completions = static_cast<int>(stage.rollout.num_generations),
                         .sampling = options.sampling,
                         .with_baseline = stage.algo.adv_estimator == AdvEstimator::kRemax};
  feed_ = std::make_unique<PromptFeed>(*source_, std::move(options.prompt_of), feed, counters.next_serial,
                                       counters.unended);
}

HubRollouts::~HubRollouts() {
  policy_.set_publisher({});
  if (!service_) return;
  std::error_code ignored;
  std::filesystem::remove(hub_file_, ignored);
}

// Every rank's share is there before a worker hears of the version; a worker that is early waits in its fetch.
void HubRollouts::publish(PolicyVersion version) {
  publisher_->publish(epoch_, version);
  if (feed_) feed_->step_done();
  if (version == std::exchange(version_, version)) return;  // the start: the hub knows it
  if (service_) service_->publish(version);
}

void HubRollouts::add_metrics(MetricRecord& record) {
  const double waited_s = source_->take_wait_s();
  record.set("timing_s/wait_for_groups", waited_s);
  if (!service_) return;
  const double* step_s = record.find("timing_s/step");
  if (step_s != nullptr && *step_s > 0) record.set("async/trainer/idle_ratio", std::min(1.0, waited_s / *step_s));
  record.set("async/rollout/idle_ratio", service_->take_idle_share());
  record.set("async/rollout/workers", static_cast<double>(service_->num_workers()));
  const HubCounters before = std::exchange(told_, service_->counters());
  const auto set_since = [&](const char* name, int64_t HubCounters::*count) {
    record.set(name, static_cast<double>(told_.*count - before.*count));
  };
  set_since("training/groups_dropped_stale", &HubCounters::num_dropped_stale);
  set_since("async/rollout/prompts_reissued", &HubCounters::num_reissued);
  set_since("async/rollout/prompts_continued", &HubCounters::num_continued);
}

RunStatus::Hub HubRollouts::figures() {
  constexpr double kWindow_s = 60;
  const HubCounters counters = service_->counters();
  RunStatus::Hub hub;
  hub.address = service_->address();
  hub.epoch = epoch_;
  hub.version = service_->version();
  hub.num_groups = counters.num_accepted;
  hub.num_dropped_stale = counters.num_dropped_stale;
  hub.num_failed = counters.num_failed;
  for (const WorkerFigures& worker : service_->workers()) {
    ++hub.num_workers;
    hub.num_leases += worker.num_leases;
    if (worker.num_leases == 0) ++hub.num_idle;
    if (hub.workers.size() < RunStatus::kListedWorkers)
      hub.workers.push_back({worker.name, worker.version, worker.num_leases, worker.silent_s});
  }
  const double now = watch_.seconds();
  groups_.emplace_back(now, hub.num_groups);
  while (groups_.size() > 2 && groups_[1].first < now - kWindow_s) groups_.pop_front();
  const auto& [since, groups] = groups_.front();
  if (now > since) hub.groups_per_s = static_cast<double>(hub.num_groups - groups) / (now - since);
  return hub;
}

void HubRollouts::complete(TrainCounters& counters) {
  counters.next_serial = feed_->cursor();
  counters.unended = feed_->unended();
  kept_ = counters;
}

void HubRollouts::saved() {
  if (!service_) return;
  // Steps may have been taken since: what they consumed, a restart asks for again.
  const std::set<int64_t> unended(kept_.unended.begin(), kept_.unended.end());
  const auto needed = [&](int64_t serial) { return serial >= kept_.next_serial || unended.contains(serial); };
  try {
    service_->trim_log(needed);
  } catch (const IoError& error) {
    log_warning("the log of accepted groups was not shortened: {}", error.what());
  }
}

void HubRollouts::finish() {
  if (service_) service_->finish();
}

}  // namespace temper
