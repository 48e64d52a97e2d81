// temper eval CONFIG | --model DIR --data F: how good a model is, without training it.
#include <ATen/ATen.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/inference_model.h"
#include "apps/model_source.h"
#include "apps/rollout_stack.h"
#include "apps/stage_data.h"
#include "config/load.h"
#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "observe/metric_sink.h"

namespace temper {
namespace {

struct Question {
  StageConfig stage;  // [data], [eval], [rollout], [reward], [run]
  std::string model;
};

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// The last stage of the configuration, on --model or the model that its run left.
Question question_of_config(const CommandLine& line) {
  const Config config = load_config(line.text("CONFIG"), line.overrides());
  Question question{config.stages.back(), line.given("model") ? line.text("model") : config.run_dir() + "/model"};
  if (!line.given("model") && !file_exists(question.model + "/config.json")) {
    if (config.stages.front().model.path.empty())
      throw ConfigError("{} has no model yet. Run temper run {} first, or give --model DIR.", question.model,
                        line.text("CONFIG"));
    question.model = config.stages.front().model.path;
    log_info("{} has no model yet: evaluating the model it starts from, {}", config.run_dir(), question.model);
  }
  return question;
}

// No configuration: a few keys, checked as in one.
Question question_of_options(const CommandLine& line) {
  if (!line.given("model")) throw ConfigError("--model DIR is missing. Give a model directory, or a CONFIG.");
  if (line.given("data") == line.given("task"))
    throw ConfigError("give either --data FILE (JSONL with prompts and answers) or --task NAME.");
  std::vector<std::string> settings = line.overrides();
  const auto set = [&](const std::string& key, const std::string& value) {
    settings.insert(settings.begin(), key + "=" + value);
  };
  set("model.path", quoted(line.text("model")));
  if (line.given("data")) {
    set("data.path", quoted(line.text("data")));
    set("data.eval_path", quoted(line.text("data")));
    set("reward.functions", "[" + quoted(line.text("reward")) + "]");
  } else {
    set("data.task", quoted(line.text("task")));
  }
  set("eval.num_prompts", line.text("num-prompts"));
  set("eval.num_completions", line.text("num-completions"));
  set("eval.temperature", line.text("temperature"));
  set("rollout.max_completion_length", line.text("max-new-tokens"));
  set("rollout.dtype", quoted(line.text("dtype")));
  set("run.seed", line.text("seed"));
  return {parse_config("", settings, "eval").stages.back(), line.text("model")};
}

}  // namespace

int run_eval(int argc, char** argv) {
  CommandLine line("eval",
                   "Prints accuracy, and for several completions avg@k and pass@k, as one JSON line an evaluation set.",
                   "CONFIG [--section.key=value …] | --model DIR --data FILE");
  line.add_positional("CONFIG", /*required=*/false);
  line.add_option("model", "DIR", "model directory; with CONFIG by default the model that its run left");
  line.add_option("data", "FILE", "JSONL with prompts and answers");
  line.add_option("task", "NAME", "a generated task instead of --data");
  line.add_option("reward", "NAME", "reward function that judges; 1 is correct", "numeric");
  line.add_option("num-prompts", "N", "at most so many prompts a set", "200");
  line.add_option("num-completions", "K", "completions a prompt; avg@k and pass@k are over them", "1");
  line.add_option("temperature", "T", "0 is greedy", "0");
  line.add_option("max-new-tokens", "TOKENS", "length limit of a completion", "256");
  declare_compute_type(line);
  line.add_option("seed", "N", "of the draws", "0");
  line.add_option("out", "FILE", "also write the completions there, as JSON lines");
  line.add_config_overrides();
  if (!line.parse(argc, argv)) return 0;

  const Question question = line.given("CONFIG") ? question_of_config(line) : question_of_options(line);
  const StageConfig& stage = question.stage;
  const ModelSource source = load_model_source(question.model);
  const std::optional<Task> task = make_task(stage.data);
  const bool use_chat = source.chat && (!task || task->uses_chat_template());
  const PromptEncoder encoder(*source.tokenizer, use_chat ? &*source.chat : nullptr);
  const std::vector<EvalSet> sets = make_eval_sets(stage, encoder, task);
  const std::optional<EvalText> text = make_eval_text(stage.eval.bits_per_char_path, *source.tokenizer);
  if (sets.empty() && !text)
    throw ConfigError("there is nothing to evaluate: give data.eval_path or data.task, with eval.num_prompts above 0.");

  const ComputeType type = rollout_type(stage);
  const TrainerModel policy = TrainerModel::frozen(source.weights, type.compute, type.weights, type.device);
  const auto rewards = make_stage_rewards(stage, task);
  RolloutStack rollouts(policy.network(), *source.tokenizer, stage, rewards);
  const auto groups = generate_eval(rollouts.source(), sets, stage.eval, sampling_params(stage));
  for (size_t i = 0; i < sets.size(); ++i) {
    MetricRecord record;
    add_eval_metrics(sets[i], groups[i], stage.eval.num_completions, record);
    nlohmann::ordered_json out = {{"name", sets[i].name}, {"num_prompts", sets[i].prompts.size()}};
    for (const auto& [name, value] : record.values) out[name.substr(name.rfind('/') + 1)] = value;
    std::cout << out.dump() << "\n";
  }
  if (text)
    std::cout << nlohmann::ordered_json{{"name", text->name}, {"bits_per_char", bits_per_character(policy, *text, 512)}}
                     .dump()
              << "\n";
  if (line.given("out")) {
    std::string lines;
    for (const auto& set : groups)
      for (const RolloutGroup& group : set) {
        CompletionRecord record{
            .stage = "eval", .step = 0, .prompt = group.prompt.text, .answer = group.prompt.answer, .completions = {}};
        for (const Completion& completion : group.completions) {
          CompletionEntry entry;
          entry.text = completion.text;
          entry.finish_reason = completion.finish_reason;
          entry.error = completion.error;
          std::vector<std::string> names;
          for (const auto& reward : rewards) names.push_back(reward->name());
          for (size_t k = 0; k < completion.rewards.size(); ++k)
            entry.rewards.emplace_back(names[k], completion.rewards[k]);
          record.completions.push_back(std::move(entry));
        }
        lines += to_json(record) + "\n";
      }
    write_file_atomically(line.text("out"), lines);
  }
  return 0;
}

}  // namespace temper
