#include "apps/stage_session.h"

#include <ATen/ATen.h>

#include <filesystem>

#include "algos/algorithm.h"
#include "checkpoint/atomic_directory.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "data/held_out.h"
#include "data/overlap.h"
#include "model/initialize.h"
#include "rollout/reward_pool.h"
#include "trainer/step_metrics.h"
#include "trainer/train_state.h"

namespace temper {

at::ScalarType compute_dtype(Dtype dtype) {
  if (dtype == Dtype::kAuto) return cpu_has_bf16() ? at::kBFloat16 : at::kFloat;
  return dtype == Dtype::kBf16 ? at::kBFloat16 : at::kFloat;
}

ModelSource load_model_source(const std::string& directory) {
  ModelSource source;
  source.model = load_model(directory);
  source.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(directory));
  source.chat = ChatTemplate::load(directory);
  return source;
}

ModelSource make_new_model(const ModelInit& init, int64_t seed) {
  ModelSource source;
  const bool bytes = init.tokenizer == "byte";
  source.tokenizer = std::make_unique<Tokenizer>(bytes ? Tokenizer::bytes() : Tokenizer::load(init.tokenizer));
  if (!bytes) source.chat = ChatTemplate::load(init.tokenizer);
  const Tokenizer& tokenizer = *source.tokenizer;
  if (init.vocab_size > 0 && init.vocab_size < tokenizer.vocab_size())
    throw ConfigError(
        "model.init.vocab_size = {}: the tokenizer has {} ids. Leave the key out, or give at least as many.",
        init.vocab_size, tokenizer.vocab_size());
  TokenizerFacts facts;
  facts.vocab_size = tokenizer.vocab_size();
  facts.eos_token_ids.assign(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  facts.bos_token_id = tokenizer.bos_id();
  facts.pad_token_id = tokenizer.pad_id();
  source.model.config = new_model_config(init, facts);
  source.model.parameters = FlatParameters(source.model.config);
  initialize_parameters(source.model.config, static_cast<uint64_t>(seed), source.model.parameters);
  return source;
}

namespace {

DatasetOptions dataset_options(const DataSection& data, bool training) {
  DatasetOptions options;
  options.prompt_field = data.prompt_field;
  options.answer_field = data.answer_field;
  options.completion_field = data.completion_field;
  options.prompt_template = data.prompt_template;
  options.max_prompt_length = data.max_prompt_length;
  options.skip_long = training;
  return options;
}

int64_t count_characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<Prompt> first_prompts(const PromptDataset& dataset, int64_t count) {
  std::vector<Prompt> prompts = dataset.prompts();
  if (static_cast<int64_t>(prompts.size()) > count) prompts.resize(static_cast<size_t>(count));
  return prompts;
}

}  // namespace

std::optional<Task> make_task(const DataSection& data) {
  if (data.task.empty()) return std::nullopt;
  TaskOptions options;
  options.seed = static_cast<uint64_t>(data.generated.seed);
  options.max_operand = data.generated.max_operand;
  options.num_items = data.generated.num_items;
  options.num_worked = data.generated.num_worked;
  options.worked_error_share = data.generated.worked_error_share;
  options.held_out_share = data.generated.held_out_share;
  return Task::make(data.task, options);
}

std::vector<EvalSet> make_eval_sets(const StageConfig& stage, const PromptEncoder& encoder,
                                    const std::optional<Task>& task) {
  std::vector<EvalSet> sets;
  if (stage.eval.num_prompts == 0) return sets;
  if (!stage.data.eval_path.empty()) {
    const auto dataset = PromptDataset::load(stage.data.eval_path, dataset_options(stage.data, false), encoder);
    sets.push_back({dataset.name(), first_prompts(dataset, stage.eval.num_prompts)});
  } else if (task) {
    for (const ProblemSet& set : task->eval_sets(stage.eval.num_prompts))
      sets.push_back({set.name, PromptDataset::of_problems(set.name, set.problems, encoder).prompts()});
  } else if (stage.data.held_out_share > 0) {
    const auto dataset = PromptDataset::load(stage.data.path, dataset_options(stage.data, false), encoder);
    sets.push_back(
        {dataset.name(), first_prompts(dataset.split(stage.data.held_out_share).second, stage.eval.num_prompts)});
  }
  return sets;
}

std::optional<EvalText> make_eval_text(const std::string& path, const Tokenizer& tokenizer) {
  if (path.empty()) return std::nullopt;
  const std::string text = read_file(path);
  EvalText eval;
  eval.name = std::filesystem::path(path).stem().string();
  eval.token_ids = tokenizer.encode(text, /*parse_special=*/false);
  if (eval.token_ids.size() < 2)
    throw FormatError("{}: eval.bits_per_char_path needs a text of at least two tokens, this one has {}.", path,
                      eval.token_ids.size());
  eval.num_characters = count_characters(text) - count_characters(tokenizer.token_bytes(eval.token_ids.front()));
  return eval;
}

SamplingParams sampling_params(const StageConfig& stage) {
  SamplingParams sampling;
  sampling.temperature = stage.rollout.temperature;
  sampling.top_k = static_cast<int32_t>(stage.rollout.top_k);
  sampling.top_p = stage.rollout.top_p;
  sampling.min_p = stage.rollout.min_p;
  sampling.max_new_tokens = static_cast<int32_t>(stage.rollout.max_completion_length);
  sampling.stop = stage.rollout.stop;
  sampling.seed = static_cast<uint64_t>(stage.run.seed);
  return sampling;
}

namespace {

EngineOptions engine_options(const RolloutSection& rollout) {
  EngineOptions options;
  options.max_num_seqs = rollout.max_num_seqs;
  options.kv_cache_memory_bytes = rollout.kv_cache_memory << 20;  // MiB
  options.block_size = rollout.block_size;
  options.enable_prefix_sharing = rollout.enable_prefix_sharing;
  options.enable_chunked_prefill = rollout.enable_chunked_prefill;
  return options;
}

}  // namespace

RolloutStack::RolloutStack(const Transformer& model, const Tokenizer& tokenizer, const StageConfig& stage,
                           const std::optional<Task>& task)
    : rewards_(make_rewards(stage.reward, task ? &*task : nullptr)),
      engine_(model, tokenizer, engine_options(stage.rollout)),
      source_(engine_, [this, timeout_s = stage.reward.timeout_s](RolloutGroup& group) {
        score_group(rewards_, group, timeout_s);
      }) {}

std::vector<std::string> RolloutStack::reward_names() const {
  std::vector<std::string> names;
  for (const auto& reward : rewards_) names.push_back(reward->name());
  return names;
}

struct StageSession::Parts {
  StageConfig stage;
  RunDirectory& run;
  CheckpointHeader header;
  FileSystem files;
  std::optional<Task> task;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
  std::optional<PromptEncoder> encoder;
  std::optional<PromptStream> prompts;  // stages that train on rollouts
  std::optional<SftDataset> examples;   // sft
  std::vector<int64_t> learned;         // the examples that are not held out
  std::optional<ShuffleOrder> order;    // of the examples
  std::vector<EvalSet> eval_sets;
  std::vector<EvalText> eval_texts;
  std::optional<Policy> policy, reference;
  std::unique_ptr<RolloutStack> rollouts;  // where something is generated
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<Algorithm> algorithm;
  std::optional<CheckpointStore> store;
  TrainCounters counters;
  bool resumed = false;

  Parts(const StageConfig& stage_config, RunDirectory& directory) : stage(stage_config), run(directory) {}

  void load_data();
  void warn_of_overlap(const std::vector<std::string>& training) const;
  RolloutGroup example(int64_t serial) const;
  std::vector<RolloutGroup> take_groups(int64_t first, int64_t count);
  std::vector<TensorEntry> accept(const CheckpointHeader& found);
};

namespace {

// What the stage can train today; the mathematics of the others is there, their data path comes later.
void check_supported(const StageConfig& stage) {
  const AlgoSection& algo = stage.algo;
  const bool sft = algo.policy_loss == PolicyLoss::kSft;
  const auto refuse = [&](const char* key, std::string_view value, const char* why) {
    throw ConfigError("stage {}: {} = {} cannot be trained yet: {}. Use preset grpo or one of its relatives, or sft.",
                      stage.name, key, value, why);
  };
  if (algo.needs_critic()) refuse("algo.adv_estimator", "gae", "it needs a critic");
  if (algo.needs_teacher()) refuse("algo.distill_coef or algo.distill_loss", "(set)", "it needs a teacher");
  if (!algo.trains_on_rollouts() && !sft)
    refuse("algo.policy_loss", to_string(algo.policy_loss), "it needs preference pairs");
  if (algo.adv_estimator == AdvEstimator::kRemax) refuse("algo.adv_estimator", "remax", "it needs greedy baselines");
  if (algo.policy_loss == PolicyLoss::kClipCov || algo.policy_loss == PolicyLoss::kKlCov)
    refuse("algo.policy_loss", to_string(algo.policy_loss), "its selection of tokens needs a further pass");
  if (algo.filter_groups) refuse("algo.filter_groups", "true", "a filtered batch is not refilled yet");
  if (algo.entropy_coef != 0)
    refuse("algo.entropy_coef", format("{}", algo.entropy_coef), "entropy has no gradient yet");
  if (algo.early_stop_kl != 0)
    refuse("algo.early_stop_kl", format("{}", algo.early_stop_kl), "epochs are not cut short yet");
  if (compute_dtype(*stage.rollout.dtype) != compute_dtype(stage.run.dtype))
    throw ConfigError(
        "rollout.dtype = {} differs from run.dtype = {}: rollouts and training share one copy of the weights. Leave "
        "rollout.dtype out.",
        to_string(*stage.rollout.dtype), to_string(stage.run.dtype));
  if (stage.train.recompute)
    throw ConfigError(
        "train.recompute = true is not there yet. Leave it out, and lower train.max_tokens_per_micro_batch instead.");
}

}  // namespace

StageSession::StageSession(const StageConfig& stage, const std::string& start, RunDirectory& run,
                           const std::string& config_toml, PolicyVersion first_version)
    : parts_(std::make_unique<Parts>(stage, run)) {
  check_supported(stage);
  Parts& parts = *parts_;
  const at::ScalarType compute = compute_dtype(stage.run.dtype);
  ModelSource source = start.empty() ? make_new_model(stage.model.init, stage.run.seed) : load_model_source(start);
  parts.tokenizer = std::move(source.tokenizer);
  parts.chat = std::move(source.chat);
  if (source.model.config.vocab_size < parts.tokenizer->vocab_size())
    throw ConfigError("{}: the tokenizer has {} ids, the model {} rows. They do not belong together.", start,
                      parts.tokenizer->vocab_size(), source.model.config.vocab_size);
  parts.task = make_task(stage.data);
  const bool use_chat = parts.chat && (!parts.task || parts.task->uses_chat_template());
  parts.encoder.emplace(*parts.tokenizer, use_chat ? &*parts.chat : nullptr);
  parts.load_data();

  if (stage.algo.needs_reference()) {
    if (!stage.model.reference.empty()) {
      LoadedModel reference = load_model(stage.model.reference);
      if (reference.config.vocab_size != source.model.config.vocab_size)
        throw ConfigError(
            "model.reference = {}: its vocabulary has {} rows, the policy's {}. Use a model of the same family.",
            stage.model.reference, reference.config.vocab_size, source.model.config.vocab_size);
      parts.reference.emplace(Policy::frozen(std::move(reference), compute));
    } else {
      parts.reference.emplace(
          Policy::frozen(source.model, compute));  // shares the masters for a moment, keeps packed copies
    }
  }
  parts.header.model_json = to_config_json(source.model.config, at::kFloat);
  parts.policy.emplace(Policy::trainable(std::move(source.model), compute));
  parts.policy->publish(first_version);
  parts.counters.policy_version = first_version;

  if (stage.algo.trains_on_rollouts() || !parts.eval_sets.empty())
    parts.rollouts = std::make_unique<RolloutStack>(parts.policy->network(), *parts.tokenizer, stage, parts.task);
  AlgoContext context;
  context.max_completion_length = stage.rollout.max_completion_length;
  if (stage.algo.trains_on_rollouts()) {
    context.reward_names = parts.rollouts->reward_names();
    context.reward_weights = stage.reward.weights;
    if (context.reward_weights.empty()) context.reward_weights.assign(context.reward_names.size(), 1.0);
  }
  parts.algorithm = make_algorithm(stage.algo, context);
  parts.optimizer = std::make_unique<AdamW>(
      parts.policy->parameters(),
      AdamWSettings{stage.optim.betas[0], stage.optim.betas[1], stage.optim.eps, stage.optim.weight_decay});

  parts.header.run = stage.run.name;
  parts.header.stage = stage.name;
  parts.header.config_toml = config_toml;
  parts.store.emplace(parts.files, run.checkpoints(stage), static_cast<int>(stage.checkpoint.keep_local));
}

StageSession::~StageSession() = default;

void StageSession::Parts::load_data() {
  if (stage.algo.policy_loss == PolicyLoss::kSft) {
    examples.emplace(task ? SftDataset::of_problems(task->name(), task->worked_problems(), *encoder)
                          : SftDataset::load(stage.data.path, dataset_options(stage.data, true), *encoder,
                                             stage.train.max_tokens_per_micro_batch));
    if (examples->size() == 0)
      throw ConfigError(
          "data.path = {}: no example is left to train on ({} were longer than train.max_tokens_per_micro_batch = {}).",
          stage.data.path, examples->num_skipped(), stage.train.max_tokens_per_micro_batch);
    for (int64_t i = 0; i < examples->size(); ++i)
      if (task || !is_held_out(examples->prompt_texts()[static_cast<size_t>(i)], stage.data.held_out_share))
        learned.push_back(i);
    order.emplace(static_cast<int64_t>(learned.size()), static_cast<uint64_t>(stage.run.seed), stage.data.shuffle);
    header.data_hash = examples->hash();
  } else if (task) {
    prompts.emplace(*task, *encoder);
    header.data_hash = prompts->hash();
  } else {
    PromptDataset dataset = PromptDataset::load(stage.data.path, dataset_options(stage.data, true), *encoder);
    if (stage.data.held_out_share > 0) dataset = dataset.split(stage.data.held_out_share).first;
    prompts.emplace(std::move(dataset), static_cast<uint64_t>(stage.run.seed), stage.data.shuffle);
    header.data_hash = prompts->hash();
  }
  eval_sets = make_eval_sets(stage, *encoder, task);
  if (const auto text = make_eval_text(stage.eval.bits_per_char_path, *tokenizer)) eval_texts.push_back(*text);
  if (task) return;  // held out by a hash
  if (examples) {
    std::vector<std::string> texts;
    for (const int64_t i : learned) texts.push_back(examples->prompt_texts()[static_cast<size_t>(i)]);
    warn_of_overlap(texts);
  } else if (const PromptDataset* dataset = prompts->dataset()) {
    std::vector<std::string> texts;
    for (const Prompt& prompt : dataset->prompts()) texts.push_back(prompt.text);
    warn_of_overlap(texts);
  }
}

void StageSession::Parts::warn_of_overlap(const std::vector<std::string>& training) const {
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

RolloutGroup StageSession::Parts::example(int64_t serial) const {
  const SftExample& given = examples->at(learned[static_cast<size_t>(order->line(serial))]);
  const auto split = given.token_ids.begin() + given.prompt_length;
  RolloutGroup group;
  group.prompt.serial = serial;
  group.prompt.line = given.line;
  group.prompt.token_ids.assign(given.token_ids.begin(), split);
  Completion completion;
  completion.token_ids.assign(split, given.token_ids.end());
  completion.mask.assign(given.loss_mask.begin() + given.prompt_length, given.loss_mask.end());
  group.completions.push_back(std::move(completion));
  return group;
}

std::vector<RolloutGroup> StageSession::Parts::take_groups(int64_t first, int64_t count) {
  std::vector<RolloutGroup> groups;
  if (examples) {
    for (int64_t serial = first; serial < first + count; ++serial) groups.push_back(example(serial));
    return groups;
  }
  std::vector<Prompt> asked;
  for (int64_t serial = first; serial < first + count; ++serial) {
    asked.push_back(prompts->at(serial));
    asked.back().serial = serial;
  }
  RolloutSource& source = rollouts->source();
  source.request(std::move(asked), static_cast<int>(stage.rollout.num_generations), sampling_params(stage));
  while (static_cast<int64_t>(groups.size()) < count) {
    auto group = source.next_group(std::chrono::steady_clock::now() + std::chrono::hours(24));
    TEMPER_CHECK(group.has_value(), "{} of {} groups came", groups.size(), count);
    groups.push_back(std::move(*group));
  }
  return groups;
}

std::vector<TensorEntry> StageSession::Parts::accept(const CheckpointHeader& found) {
  if (found.data_hash != header.data_hash && !stage.checkpoint.allow_other_data)
    throw ConfigError(
        "the checkpoint of step {} was trained on other data (hash {}, now {}). Restore the data, start afresh with "
        "--checkpoint.resume=never, or go on with --checkpoint.allow_other_data=true.",
        found.step, found.data_hash, header.data_hash);
  const auto blob = found.blobs.find("trainer");
  if (blob == found.blobs.end()) throw FormatError("the checkpoint of step {} has no trainer counters.", found.step);
  counters = load_counters(blob->second, *optimizer, *algorithm);
  return state_tensors(*policy, *optimizer);
}

std::optional<int64_t> StageSession::resume(const std::string& checkpoint) {
  Parts& parts = *parts_;
  parts.store->remove_stale();
  const auto destinations = [&](const CheckpointHeader& header) { return parts.accept(header); };
  std::optional<LoadedCheckpoint> loaded;
  if (checkpoint.empty()) {
    loaded = parts.store->load_newest(destinations);
  } else {
    loaded = parts.store->load(checkpoint, destinations);
    parts.store->set_aside_newer_than(loaded->header.step);
  }
  if (!loaded) return std::nullopt;
  parts.header.epoch = loaded->header.epoch + 1;
  parts.policy->publish(parts.counters.policy_version);
  parts.resumed = true;
  log_info("stage {}: resumed at step {} from {}", parts.stage.name, parts.counters.step, loaded->path);
  return parts.counters.step;
}

StageOutcome StageSession::run() {
  Parts& parts = *parts_;
  StageParts stage;
  stage.config = &parts.stage;
  stage.loop.config = &parts.stage;
  stage.loop.policy = &*parts.policy;
  stage.loop.reference = parts.reference ? &*parts.reference : nullptr;
  stage.loop.algorithm = parts.algorithm.get();
  stage.loop.optimizer = parts.optimizer.get();
  stage.loop.take_groups = [&](int64_t first, int64_t count) { return parts.take_groups(first, count); };
  std::vector<std::string> reward_names;
  if (parts.stage.algo.trains_on_rollouts()) {
    reward_names = parts.rollouts->reward_names();
    stage.loop.reward_weights = parts.stage.reward.weights;
    if (stage.loop.reward_weights.empty()) stage.loop.reward_weights.assign(reward_names.size(), 1.0);
  }
  stage.loop.peak_flops = measure_peak_flops(parts.policy->config(), compute_dtype(parts.stage.run.dtype));
  stage.source = parts.rollouts ? &parts.rollouts->source() : nullptr;
  stage.sampling = sampling_params(parts.stage);
  stage.eval_sets = parts.eval_sets;
  stage.eval_texts = parts.eval_texts;
  stage.store = &*parts.store;
  stage.header = parts.header;
  stage.hooks.on_record = [&](const MetricRecord& record) { parts.run.write(record); };
  stage.hooks.on_step = [&](StepResult& result) {
    if (parts.rollouts) result.record.set("timing_s/reward", parts.rollouts->take_scoring_s());
    if (parts.stage.algo.trains_on_rollouts())
      parts.run.write_completions(result, reward_names, parts.stage.log.completions);
  };
  stage.hooks.stop_requested = stop_requested;
  parts.run.begin_stage(parts.stage, parts.counters.step);
  Stage runner(std::move(stage), parts.counters, parts.resumed);
  const StageOutcome outcome = runner.run();
  parts.counters = runner.counters();
  parts.run.end_stage();
  return outcome;
}

void StageSession::export_model(const std::string& path, at::ScalarType dtype) const {
  const Parts& parts = *parts_;
  FileSystem files;
  write_directory_atomically(files, path, [&](const std::string& folder) {
    write_model_files(folder, parts.policy->config(), parts.policy->parameters(), dtype);
    parts.tokenizer->save(folder);
  });
}

}  // namespace temper
