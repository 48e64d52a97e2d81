#include "apps/model_checks.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "config/stage_models.h"
#include "core/error.h"
#include "core/files.h"
#include "data/tokenizer.h"
#include "model/initialize.h"
#include "model/model_config.h"
#include "model/tensor_parallel.h"

namespace temper {
namespace {

constexpr std::string_view kClassifier = "ForSequenceClassification";

struct ModelFacts {
  ModelConfig body;          // read as a language model's
  std::string architecture;  // empty: config.json does not say
  int64_t num_labels = 2;    // of a classifier; 2 where config.json does not say, as in transformers
  bool is_classifier() const { return architecture.ends_with(kClassifier); }
};

std::string in(const std::string& directory, const char* name) {
  return (std::filesystem::path(directory) / name).string();
}

ModelFacts read_facts(const std::string& directory) {
  const std::string path = in(directory, "config.json");
  if (!file_exists(path))
    throw IoError(
        "{}: no such model folder, or no config.json in it. Give the path of a folder in the Hugging Face layout "
        "(config.json, model.safetensors, tokenizer.json); models are not fetched by name.",
        directory);
  std::string text = read_file(path);
  auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  ModelFacts facts;
  if (json.is_object()) {
    const auto names = json.find("architectures");
    if (names != json.end() && names->is_array() && !names->empty() && names->front().is_string())
      facts.architecture = names->front().get<std::string>();
    const auto labels = json.find("id2label"), count = json.find("num_labels");
    if (labels != json.end() && labels->is_object())
      facts.num_labels = static_cast<int64_t>(labels->size());
    else if (count != json.end() && count->is_number_integer())
      facts.num_labels = count->get<int64_t>();
    if (facts.is_classifier()) {  // its body is that of the language model of the same model_type
      json.erase("architectures");
      text = json.dump();
    }
  }
  facts.body = parse_model_config(text, path);  // refuses what is no JSON, or no model of ours
  if (!file_exists(in(directory, "model.safetensors")) && !file_exists(in(directory, "model.safetensors.index.json")))
    throw IoError("{}: holds neither model.safetensors nor model.safetensors.index.json. Fetch the model's weights.",
                  directory);
  return facts;
}

// Of model.init; its sizes are checked on the way.
ModelConfig new_model(const ModelInit& init) {
  TokenizerFacts facts;
  facts.vocab_size = (init.tokenizer == "byte" ? Tokenizer::bytes() : Tokenizer::load(init.tokenizer)).vocab_size();
  return new_model_config(init, facts);
}

// Runs `read`; what it throws is thrown on with the place in front.
template <class Read>
auto at_place(const std::string& place, const Read& read) {
  try {
    return read();
  } catch (const IoError& error) {
    throw IoError("{}: {}", place, error.what());
  } catch (const FormatError& error) {
    throw FormatError("{}: {}", place, error.what());
  } catch (const ConfigError& error) {
    throw ConfigError("{}: {}", place, error.what());
  }
}

class Checker {
 public:
  explicit Checker(const Config& config) : config_(config) {}

  void check_stage(size_t index) {
    const StageConfig& stage = config_.stages[index];
    vocabularies_.push_back(start_vocabulary(index));
    for (const ModelUse& use : used_models(stage))
      if (use.role != ModelRole::kStart) check_use(index, use);
    const AlgoSection& algo = stage.algo;
    if (algo.needs_teacher() && algo.distill_loss != DistillLoss::kNone && algo.distill_top_k > vocabularies_[index])
      throw ConfigError(
          "stage {}: algo.distill_top_k = {} exceeds the vocabulary of {} tokens. Lower it, or set it to 0 for the "
          "whole vocabulary.",
          stage.name, algo.distill_top_k, vocabularies_[index]);
  }

 private:
  // What the stage trains: from another stage, from a directory, or new.
  int64_t start_vocabulary(size_t index) const {
    const StageConfig& stage = config_.stages[index];
    const int64_t start = start_stage(config_, index);
    if (start >= 0) return vocabularies_.at(static_cast<size_t>(start));
    if (stage.model.path.empty())
      return at_place(format("stage {}: model.init", stage.name), [&] {
        const ModelConfig made = new_model(stage.model.init);
        check_tensor_parallel(made, stage.train.tensor_parallel, "it");
        return made.vocab_size;
      });
    const std::string place = format("stage {}: model.path", stage.name);
    const ModelFacts facts = at_place(place, [&] { return read_facts(stage.model.path); });
    if (!makes_reward_model(stage)) refuse_classifier(place, stage.model.path, facts);
    if (!file_exists(in(stage.model.path, "tokenizer.json")))
      throw IoError("{}: {} holds no tokenizer.json. Fetch the model's tokenizer.", place, stage.model.path);
    check_tensor_parallel(facts.body, stage.train.tensor_parallel, place);
    return facts.body.vocab_size;
  }

  void check_use(size_t index, const ModelUse& use) const {
    const std::string place = format("stage {}: {}", config_.stages[index].name, use.key);
    int64_t vocab_size = 0;
    if (const auto name = stage_reference(use.path)) {
      vocab_size = vocabularies_.at(stage_index(config_, *name).value());  // that it is an earlier one was checked
    } else {
      const ModelFacts facts = at_place(place, [&] { return read_facts(use.path); });
      if (use.role == ModelRole::kReference || use.role == ModelRole::kTeacher)
        refuse_classifier(place, use.path, facts);
      if (use.role == ModelRole::kReward && !facts.is_classifier())
        throw ConfigError(
            "{} = {}: its config.json names the architecture {}, a reward model is a ...{} with one label. Train one "
            "with algo.preset = reward_model, and name its directory or \"stage:NAME\".",
            place, use.path, facts.architecture.empty() ? "of a language model" : facts.architecture, kClassifier);
      if (facts.is_classifier() && facts.num_labels != 1)
        throw ConfigError(
            "{} = {}: the classifier has {} labels (id2label in config.json), a reward model or critic has 1. Choose a "
            "model that gives one number.",
            place, use.path, facts.num_labels);
      vocab_size = facts.body.vocab_size;
      const StageConfig& stage = config_.stages[index];
      const bool stays_whole =
          use.role == ModelRole::kReward || (use.role == ModelRole::kTeacher && stage.rollout.teacher_share > 0);
      if (!stays_whole) check_tensor_parallel(facts.body, stage.train.tensor_parallel, place);
    }
    if (vocab_size != vocabularies_[index])
      throw ConfigError(
          "{} = {}: its vocabulary has {} tokens, that of the model which the stage trains ({}) has {}. Use a model "
          "with the same tokenizer.",
          place, use.path, vocab_size, start_text(index), vocabularies_[index]);
  }

  static void refuse_classifier(const std::string& place, const std::string& path, const ModelFacts& facts) {
    if (facts.is_classifier())
      throw ConfigError(
          "{} = {}: its config.json names the architecture {}, which has no head to generate text with. Name the "
          "directory of a language model; a reward model belongs in reward.model or critic.path.",
          place, path, facts.architecture);
  }

  std::string start_text(size_t index) const {
    const int64_t start = start_stage(config_, index);
    if (start >= 0) return "stage:" + config_.stages[static_cast<size_t>(start)].name;
    const std::string& path = config_.stages[index].model.path;
    return path.empty() ? "model.init" : path;
  }

  const Config& config_;
  std::vector<int64_t> vocabularies_;  // of the stages' models, as far as they were checked
};

}  // namespace

void check_models(const Config& config) {
  Checker checker(config);
  for (size_t i = 0; i < config.stages.size(); ++i) checker.check_stage(i);
}

}  // namespace temper
