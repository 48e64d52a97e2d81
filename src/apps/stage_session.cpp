#include "apps/stage_session.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/hub_rollouts.h"
#include "apps/loaded_models.h"
#include "apps/rank_world.h"
#include "apps/rollout_stack.h"
#include "apps/stage_data.h"
#include "checkpoint/atomic_directory.h"
#include "config/stage_models.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "data/overlap.h"
#include "model/hf_directory.h"
#include "trainer/step_metrics.h"
#include "trainer/train_state.h"

namespace temper {

struct StageSession::Parts {
  StageConfig given;  // as it was loaded
  StageConfig stage;  // its model paths are directories
  RunDirectory& run;
  std::function<void()> check_workers;
  Ranks ranks;
  CheckpointHeader header;
  PacedFileSystem files;
  StageModels models;
  std::optional<Task> task;
  std::optional<PromptEncoder> encoder;
  std::optional<TrainingData> data;
  std::vector<EvalSet> eval_sets;
  std::vector<EvalText> eval_texts;
  std::vector<std::unique_ptr<Reward>> rewards;
  std::unique_ptr<RolloutStack> rollouts;          // where something is generated in this process
  std::unique_ptr<HubRollouts> workers;            // where it is elsewhere
  std::shared_ptr<void> hub_watch;                 // status.json has its figures
  std::unique_ptr<RolloutStack> teacher_rollouts;  // rollout.teacher_share
  std::unique_ptr<Algorithm> algorithm;
  std::unique_ptr<Communicator> saving_ranks, copying_ranks;  // null: alone
  std::optional<CheckpointTiers> tiers;
  TrainCounters counters;
  HostState incoming;  // what a checkpoint is being read into
  bool resumed = false;

  Parts(const StageConfig& stage_config, RunDirectory& directory, const Ranks& all)
      : given(stage_config),
        stage(stage_config),
        run(directory),
        ranks(all),
        files(stage_config.checkpoint.max_write_mb_per_s * 1'000'000) {}

  void load_data();
  void warn_of_overlap() const;
  void compare_ranks() const;
  bool is_teachers(int64_t serial) const;
  double teachers_part(const StepBatch& batch) const;
  std::vector<RolloutGroup> take_groups(int64_t first, int64_t count);
  std::vector<RolloutGroup> generate(RolloutStack& stack, const std::vector<Prompt>& prompts);
  std::vector<RolloutGroup> pair_with_baselines(std::vector<RolloutGroup> all) const;
  RolloutSource* source() const;
  void start_workers();
  TrainLoopParts loop_parts();
  std::vector<std::string> reward_names() const;
  std::vector<double> reward_weights() const;
  std::vector<TensorEntry> accept(const CheckpointHeader& found);
};

namespace {

void refuse_other_frozen_models(int64_t step, const std::string& kept,
                                const std::map<std::string, std::string>& identities) {
  auto before = nlohmann::json::parse(kept).get<std::map<std::string, std::string>>();
  std::map<std::string, std::string> now = identities;
  for (const auto& [key, hash] : now) before.try_emplace(key, "none");
  for (const auto& [key, hash] : before) {
    now.try_emplace(key, "none");
    if (now[key] != hash)
      throw ConfigError(
          "the checkpoint of step {} was trained beside another {} (weights {}, now {}). Restore that model or "
          "setting, "
          "or start afresh with --checkpoint.resume=never.",
          step, key, hash, now[key]);
  }
}

}  // namespace

StageSession::StageSession(const StageConfig& stage, const std::string& start, RunDirectory& run,
                           const std::string& config_toml, PolicyVersion first_version, const Ranks& ranks,
                           std::function<void()> check_workers)
    : parts_(std::make_unique<Parts>(stage, run, ranks)) {
  Parts& parts = *parts_;
  parts.check_workers = std::move(check_workers);
  locate_models(run.config(), parts.stage);
  parts.ranks = ranks.with_tensor_parallel(stage.train.tensor_parallel).with_replicas(stage.train.replicas);
  warn_of_placement(parts.ranks);
  parts.models = load_stage_models(parts.stage, start, parts.ranks);
  StageModels& models = parts.models;
  const ComputeType rollouts = rollout_type(stage);
  const bool differ = stage.algo.trains_on_rollouts() && rollouts != training_type(stage.run);
  const bool generates = stage.algo.trains_on_rollouts() || evaluates(stage);
  if (!stage.uses_hub() && (differ || (generates && models.policy->needs_separate_rollouts())))
    models.policy->separate_rollouts(rollouts.compute, rollouts.weights);
  models.policy->publish(first_version);
  parts.counters.policy_version = first_version;
  parts.task = make_task(stage.data);
  const bool use_chat = models.chat && (!parts.task || parts.task->uses_chat_template());
  parts.encoder.emplace(*models.tokenizer, use_chat ? &*models.chat : nullptr);
  parts.load_data();

  if (!stage.uses_hub() && (stage.algo.trains_on_rollouts() || !parts.eval_sets.empty())) {
    parts.rewards = make_stage_rewards(parts.stage, parts.task);
    parts.rollouts = std::make_unique<RolloutStack>(models.policy->rollout_network(), *models.tokenizer, parts.stage,
                                                    parts.rewards, ranks);
  }
  if (stage.rollout.teacher_share > 0 && models.teacher)
    parts.teacher_rollouts =
        std::make_unique<RolloutStack>(models.teacher->network(), *models.tokenizer, parts.stage, parts.rewards, ranks);
  AlgoContext context;
  context.max_completion_length = stage.rollout.max_completion_length;
  context.reward_names = parts.reward_names();
  context.reward_weights = parts.reward_weights();
  parts.algorithm = make_algorithm(stage.algo, context);

  parts.header.run = stage.run.name;
  parts.header.stage = stage.name;
  parts.header.config_toml = config_toml;
  parts.header.data_hash = parts.data->hash();
  parts.header.model_json = to_config_json(models.policy->config(), at::kFloat);
  parts.header.blobs["frozen_models"] = nlohmann::json(models.identities).dump();
  if (ranks.size() > 1) {
    parts.saving_ranks = ranks.communicator()->split_for_host(0, ranks.rank());
    parts.copying_ranks = ranks.communicator()->split_for_host(0, ranks.rank());
  }
  parts.tiers.emplace(parts.files, run.checkpoints(stage), parts.saving_ranks.get(), parts.copying_ranks.get());
  parts.compare_ranks();
  parts.tiers->prepare();
}

StageSession::~StageSession() = default;

void StageSession::Parts::load_data() {
  data.emplace(stage, *encoder, task);
  if (evaluates(stage)) eval_sets = make_eval_sets(stage, *encoder, task);
  // A reward model predicts no text.
  if (models.policy->config().lm_head)
    if (const auto text = make_eval_text(stage.eval.bits_per_char_path, *models.tokenizer)) eval_texts.push_back(*text);
  warn_of_overlap();
}

// The ranks must train one model on one data set.
void StageSession::Parts::compare_ranks() const {
  if (ranks.size() == 1) return;
  const auto compare = [this](const char* what, const std::string& mine, const char* fix) {
    const std::vector<std::string> all = ranks.communicator()->gather_texts(what, mine);
    for (size_t r = 1; r < all.size(); ++r)
      if (all[r] != all[0])
        throw ConfigError("stage {}: the {} of rank 0 has the hash {}, that of rank {} {}. {}", stage.name, what,
                          all[0], r, all[r], fix);
  };
  compare("training data", header.data_hash, "Give all ranks the same files.");
  compare("model", models.start_hash, "Give all ranks the same model directory.");
}

void StageSession::Parts::warn_of_overlap() const {
  const std::vector<std::string> training = data->prompt_texts();
  if (training.empty()) return;
  for (const EvalSet& set : eval_sets) {
    std::vector<std::string> texts;
    for (const Prompt& prompt : set.prompts) texts.push_back(prompt.text);
    const int64_t count = count_overlap(texts, training);
    if (count > 0)
      log_warning(
          "stage {}: {} of {} evaluation prompts of {} occur in the training data. Its accuracy will flatter the "
          "model; take them "
          "out of data.path.",
          stage.name, count, texts.size(), set.name);
  }
}

std::vector<std::string> StageSession::Parts::reward_names() const {
  if (!stage.algo.trains_on_rollouts()) return {};
  return stage.reward.functions;
}

std::vector<double> StageSession::Parts::reward_weights() const {
  if (!stage.algo.trains_on_rollouts()) return {};
  return stage.reward.weights.empty() ? std::vector<double>(stage.reward.functions.size(), 1.0) : stage.reward.weights;
}

// Which prompts the teacher answers (off-policy): a draw of its own, the same on resume.
bool StageSession::Parts::is_teachers(int64_t serial) const {
  constexpr int32_t kTeacherDraw = -1;  // no completion has this index
  return teacher_rollouts &&
         uniform_draw({static_cast<uint64_t>(stage.run.seed), serial, kTeacherDraw, 0}) < stage.rollout.teacher_share;
}

// The share of a batch's completions that the teacher wrote.
double StageSession::Parts::teachers_part(const StepBatch& batch) const {
  double teachers = 0;
  for (const auto& sequence : batch.sequences) teachers += is_teachers(batch.groups[sequence.group].prompt.serial);
  return teachers / std::max<double>(1, static_cast<double>(batch.sequences.size()));
}

std::vector<RolloutGroup> StageSession::Parts::take_groups(int64_t first, int64_t count) {
  std::vector<RolloutGroup> groups;
  if (!stage.algo.trains_on_rollouts()) {
    for (int64_t serial = first; serial < first + count; ++serial) groups.push_back(data->example(serial));
    return groups;
  }
  if (workers) return pair_with_baselines(workers->take(count));
  std::vector<Prompt> policys, teachers;
  for (int64_t serial = first; serial < first + count; ++serial) {
    Prompt prompt = data->prompt(serial);
    prompt.serial = serial;
    (is_teachers(serial) ? teachers : policys).push_back(std::move(prompt));
  }
  groups = generate(*rollouts, policys);
  if (teachers.empty()) return groups;
  for (RolloutGroup& group : generate(*teacher_rollouts, teachers)) {
    for (Completion& completion : group.completions) completion.policy_versions.clear();  // no version of the policy
    groups.push_back(std::move(group));
  }
  return groups;
}

// The prompts' groups; with remax also a greedy completion of each.
std::vector<RolloutGroup> StageSession::Parts::generate(RolloutStack& stack, const std::vector<Prompt>& prompts) {
  RolloutSource& source = stack.source();
  SamplingParams sampling = sampling_params(stage);
  source.request(prompts, static_cast<int>(stage.rollout.num_generations), sampling, RolloutPurpose::kTrain);
  const bool with_baseline = stage.algo.adv_estimator == AdvEstimator::kRemax;
  if (with_baseline) {
    sampling.temperature = 0;
    source.request(prompts, 1, sampling, RolloutPurpose::kBaseline);
  }
  std::vector<RolloutGroup> groups;
  for (size_t left = prompts.size() * (with_baseline ? 2 : 1); left > 0; --left) {
    auto group = source.next_group(std::chrono::steady_clock::now() + std::chrono::hours(24));
    TEMPER_CHECK(group.has_value(), "{} groups did not come", left);
    groups.push_back(std::move(*group));
  }
  return pair_with_baselines(std::move(groups));
}

// The groups that are trained on, each with the reward of its prompt's greedy completion where there is one.
std::vector<RolloutGroup> StageSession::Parts::pair_with_baselines(std::vector<RolloutGroup> all) const {
  std::vector<RolloutGroup> groups;
  std::map<int64_t, Completion> baselines;  // by serial
  for (RolloutGroup& group : all) {
    if (group.purpose == RolloutPurpose::kBaseline)
      baselines[group.prompt.serial] = std::move(group.completions.front());
    else
      groups.push_back(std::move(group));
  }
  const std::vector<double> weights = reward_weights();
  for (RolloutGroup& group : groups) {
    const auto baseline = baselines.find(group.prompt.serial);
    if (baseline == baselines.end()) continue;
    const Completion& greedy = baseline->second;
    if (greedy.error.empty()) {
      group.baseline_reward = 0;
      for (size_t k = 0; k < weights.size(); ++k) *group.baseline_reward += weights[k] * greedy.rewards[k];
    } else {
      for (Completion& completion : group.completions)
        if (completion.error.empty()) completion.error = "the greedy completion it is compared with: " + greedy.error;
    }
  }
  return groups;
}

RolloutSource* StageSession::Parts::source() const {
  if (workers) return &workers->source();
  return rollouts ? &rollouts->source() : nullptr;
}

// Once the state is loaded: workers must not see the weights before it.
void StageSession::Parts::start_workers() {
  if (!stage.uses_hub()) return;
  HubRollouts::Options options{.stage = given,
                               .run_directory = run.path(),
                               .tokenizer = models.tokenizer.get(),
                               .sampling = sampling_params(stage),
                               .prompt_of = [this](int64_t serial) { return data->prompt(serial); },
                               .check = check_workers};
  workers = std::make_unique<HubRollouts>(std::move(options), *models.policy, counters, ranks);
  hub_watch = run.watch_hub([this] { return workers->figures(); });
}

TrainLoopParts StageSession::Parts::loop_parts() {
  TrainLoopParts loop;
  loop.config = &stage;
  loop.policy = &*models.policy;
  loop.critic = models.critic(stage);
  loop.reference = models.reference ? &*models.reference : nullptr;
  loop.teacher = models.teacher ? &*models.teacher : nullptr;
  loop.algorithm = algorithm.get();
  loop.optimizer = models.optimizer.get();
  loop.critic_optimizer = models.critic_optimizer.get();
  loop.take_groups = [this](int64_t first, int64_t count) { return take_groups(first, count); };
  loop.reward_weights = reward_weights();
  loop.ranks = ranks;
  return loop;
}

std::vector<TensorEntry> StageSession::Parts::accept(const CheckpointHeader& found) {
  if (found.data_hash != header.data_hash && !stage.checkpoint.allow_other_data)
    throw ConfigError(
        "the checkpoint of step {} was trained on other data (hash {}, now {}). Restore the data, start afresh with "
        "--checkpoint.resume=never, or go on with --checkpoint.allow_other_data=true.",
        found.step, found.data_hash, header.data_hash);
  const auto frozen = found.blobs.find("frozen_models");
  if (frozen != found.blobs.end()) refuse_other_frozen_models(found.step, frozen->second, models.identities);
  const auto blob = found.blobs.find("trainer");
  if (blob == found.blobs.end()) throw FormatError("the checkpoint of step {} has no trainer counters.", found.step);
  const TrainLoopParts loop = loop_parts();
  counters = load_counters(blob->second, loop);
  if (!counters.unended.empty() && !stage.uses_hub())
    throw ConfigError(
        "the checkpoint of step {} was left by rollout workers that ran ahead of the trainer: {} prompts are asked for "
        "and not trained on. Resume it with rollout.workers, or rollout.source = \"hub\".",
        found.step, counters.unended.size());
  incoming = HostState::room_for(loop);
  return incoming.entries();
}

std::optional<int64_t> StageSession::resume(const std::string& checkpoint) {
  Parts& parts = *parts_;
  const PacedFileSystem::Hurry waiting(parts.files);  // nothing trains yet
  const auto destinations = [&](const CheckpointHeader& header) { return parts.accept(header); };
  std::optional<LoadedCheckpoint> loaded;
  if (checkpoint.empty()) {
    loaded = parts.tiers->load_newest(destinations);
  } else {
    loaded = parts.tiers->load(checkpoint, destinations);
    parts.tiers->set_aside_newer_than(loaded->header.step);
  }
  if (!loaded) return std::nullopt;
  std::exchange(parts.incoming, {}).put_back();
  parts.header.epoch = loaded->header.epoch + 1;
  parts.models.policy->publish(parts.counters.policy_version);
  if (parts.models.own_critic) parts.models.own_critic->publish(parts.counters.policy_version);
  parts.resumed = true;
  log_info("stage {}: resumed at step {} from {}{}", parts.stage.name, parts.counters.step, loaded->path,
           loaded->tier.empty() ? "" : format(" ({} tier)", loaded->tier));
  return parts.counters.step;
}

void StageSession::release_memory() { parts_->tiers->release_ram(); }

StageOutcome StageSession::run() {
  Parts& parts = *parts_;
  parts.start_workers();
  StageParts stage;
  stage.config = &parts.stage;
  stage.loop = parts.loop_parts();
  const ComputeType training = training_type(parts.stage.run);
  stage.loop.peak_flops = measure_peak_flops(parts.models.policy->config(), training.compute, training.device);
  stage.source = parts.source();
  stage.sampling = sampling_params(parts.stage);
  stage.eval_sets = parts.eval_sets;
  stage.eval_texts = parts.eval_texts;
  stage.held_out = parts.data->held_out();
  const std::string& path = parts.stage.data.path;
  stage.held_out_name = path.empty() ? parts.stage.data.task : std::filesystem::path(path).stem().string();
  stage.files = &parts.files;
  stage.tiers = &*parts.tiers;
  stage.header = parts.header;
  const std::vector<std::string> reward_names = parts.reward_names();
  stage.hooks.on_record = [&](const MetricRecord& record) { parts.run.write(record); };
  stage.hooks.on_step = [&](StepResult& result) {
    if (!parts.stage.algo.trains_on_rollouts()) return;
    if (parts.rollouts) result.record.set("timing_s/reward", parts.rollouts->take_scoring_s());
    if (parts.workers) parts.workers->add_metrics(result.record);
    if (parts.teacher_rollouts)
      result.record.set("training/off_policy/teacher_share", parts.teachers_part(result.batch));
    parts.run.write_completions(result, reward_names, parts.stage.log.completions);
  };
  stage.hooks.on_save = [&](int64_t step, StageSaver::Tier tier, bool good) {
    parts.run.saved(step, good);
    // A checkpoint in memory may be lost, and the local one before it be resumed from.
    if (good && tier == StageSaver::Tier::kLocal && parts.workers) parts.workers->saved();
  };
  stage.hooks.stop_requested = stop_requested;
  if (parts.workers) stage.hooks.before_save = [&](TrainCounters& counters) { parts.workers->complete(counters); };
  parts.run.begin_stage(parts.stage, parts.counters.step);
  Stage runner(std::move(stage), parts.counters, parts.resumed);
  const StageOutcome outcome = runner.run();
  parts.counters = runner.counters();
  parts.run.end_stage();
  if (parts.workers && outcome == StageOutcome::kDone) parts.workers->finish();
  parts.hub_watch.reset();
  parts.workers.reset();
  return outcome;
}

// All ranks bring what they have of the model, block by block; the first one writes. Its failure is everybody's.
void StageSession::export_model(const std::string& path, at::ScalarType dtype) const {
  const Parts& parts = *parts_;
  std::string failure;
  bool visited = false;
  const auto write_to = [&](const std::string& folder) {
    ModelFilesWriter files(folder, parts.models.exported_config(parts.stage), dtype);
    visited = true;
    parts.models.policy->visit_masters([&](int64_t, const FlatParameters& masters) {
      try {
        if (failure.empty()) files.write(masters);
      } catch (const IoError& error) {
        failure = error.what();
      }
    });
    if (!failure.empty()) throw IoError("{}", failure);
    files.finish();
    parts.models.tokenizer->save(folder);
  };
  try {
    FileSystem files;
    if (parts.ranks.leads()) write_directory_atomically(files, path, write_to);
  } catch (const IoError& error) {
    failure = error.what();
  }
  if (!visited) parts.models.policy->visit_masters([](int64_t, const FlatParameters&) {});
  failure = parts.ranks.first_error(failure);
  if (!failure.empty()) throw IoError("{}", failure);
}

}  // namespace temper
