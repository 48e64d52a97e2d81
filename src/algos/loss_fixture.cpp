#include "algos/loss_fixture.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "algos/non_finite_json.h"
#include "config/load.h"
#include "core/error.h"
#include "core/files.h"
#include "core/nearest_name.h"

namespace temper {
namespace {

using Json = nlohmann::json;

std::string quoted(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

// ---- the document ----

Json parse_strictly(const std::string& text) {
  std::vector<std::set<std::string>> keys;  // of the objects being read
  const auto refuse_duplicates = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw FormatError("the field {} stands twice in one object. Remove one.", quoted(parsed));
    return true;
  };
  try {
    return Json::parse(mark_non_finite(text), refuse_duplicates);
  } catch (const Json::exception& error) {
    throw FormatError("not JSON: {}. Write one JSON object.", error.what());
  }
}

void refuse_non_finite(const Json& value, const std::string& path, int depth = 0) {
  if (depth > 32) throw FormatError("{}: nested too deeply", path);
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text.starts_with(kNonFiniteMark))
      throw NumericsError("{} is {}: not a finite number. Give a number.", path, text.substr(kNonFiniteMark.size()));
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) refuse_non_finite(value[i], format("{}[{}]", path, i), depth + 1);
  } else if (value.is_object()) {
    for (const auto& [key, item] : value.items())
      refuse_non_finite(item, path.empty() ? key : format("{}.{}", path, key), depth + 1);
  }
}

const Json& object_with(const Json& value, const std::string& path, const std::vector<std::string>& known) {
  const std::string name = path.empty() ? "the fixture" : path;
  if (!value.is_object()) throw FormatError("{} is {}: expected an object.", name, quoted(value));
  for (const auto& [key, item] : value.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw FormatError("unknown field {}{}{}: the nearest is {}. Known here: {}.", path, path.empty() ? "" : ".", key,
                        nearest_name(key, known), join(known));
  return value;
}

const Json& list_at(const Json& value, const std::string& path) {
  if (!value.is_array()) throw FormatError("{} is {}: expected a list.", path, quoted(value));
  return value;
}

double number_at(const Json& value, const std::string& path) {
  if (!value.is_number()) throw FormatError("{} is {}: expected a number.", path, quoted(value));
  return value.get<double>();
}

// ---- settings ----

// A value as config reads it: TOML. Strings are quoted alike in both; an integer may stand as 3.0 in JSON.
std::string toml_value(const Json& value, const std::string& path) {
  if (value.is_object()) {
    std::vector<std::string> entries;
    for (const auto& [key, item] : value.items())
      entries.push_back(format("{} = {}", Json(key).dump(), toml_value(item, format("{}.{}", path, key))));
    return format("{{}}", join(entries));
  }
  if (value.is_array()) {
    std::vector<std::string> entries;
    for (size_t i = 0; i < value.size(); ++i) entries.push_back(toml_value(value[i], format("{}[{}]", path, i)));
    return format("[{}]", join(entries));
  }
  if (value.is_null()) throw ConfigError("{} is null: give a value, or leave the key out for its default.", path);
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number == std::floor(number) && std::abs(number) < 1e15) return std::to_string(static_cast<int64_t>(number));
  }
  return value.dump();
}

AlgoSection parse_settings(const Json& root) {
  std::vector<std::string> settings;
  if (root.contains("algo")) {
    const Json& algo = root["algo"];
    if (!algo.is_object()) throw FormatError("algo is {}: expected an object of keys.", quoted(algo));
    for (const auto& [key, value] : algo.items()) {
      if (key.empty() ||
          key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != std::string::npos)
        throw ConfigError("unknown key algo.{}: keys are words such as algo.kl_coef; a table is an object", key);
      settings.push_back(format("{}={}", key, toml_value(value, format("algo.{}", key))));
    }
  }
  return parse_algo(settings);
}

AlgoContext parse_context(const Json& root) {
  AlgoContext context;
  if (root.contains("rollout")) {
    const Json& rollout = object_with(root["rollout"], "rollout", {"max_completion_length"});
    if (rollout.contains("max_completion_length")) {
      const double length = number_at(rollout["max_completion_length"], "rollout.max_completion_length");
      if (length < 1 || length != std::floor(length) || length > 1e15)
        throw ConfigError("rollout.max_completion_length is {}: allowed are whole numbers of tokens from 1 on.",
                          length);
      context.max_completion_length = static_cast<int64_t>(length);
    }
  }
  if (root.contains("reward")) {
    const Json& reward = object_with(root["reward"], "reward", {"functions", "weights"});
    if (reward.contains("functions"))
      for (const Json& name : list_at(reward["functions"], "reward.functions")) {
        if (!name.is_string()) throw FormatError("reward.functions holds {}: expected names.", quoted(name));
        context.reward_names.push_back(name.get<std::string>());
      }
    if (reward.contains("weights"))
      for (const Json& weight : list_at(reward["weights"], "reward.weights"))
        context.reward_weights.push_back(number_at(weight, "reward.weights"));
  }
  return context;
}

// ---- arrays ----

const std::vector<std::string> kTokenArrays = {"policy_logprobs", "old_logprobs",     "behavior_logprobs",
                                               "ref_logprobs",    "teacher_logprobs", "values",
                                               "old_values",      "entropies",        "token_rewards"};
const std::vector<std::string> kVocabularyArrays = {"policy_logits", "teacher_logits"};

std::vector<std::string> completion_fields() {
  std::vector<std::string> fields = {"mask", "reward", "rewards", "finish_reason"};
  fields.insert(fields.end(), kTokenArrays.begin(), kTokenArrays.end());
  fields.insert(fields.end(), kVocabularyArrays.begin(), kVocabularyArrays.end());
  return fields;
}

class Reader {
 public:
  Reader(const Json& root, LossFixture& fixture) : fixture_(fixture), needs_(needed_arrays(fixture.settings)) {
    if (!root.contains("groups")) throw FormatError("groups is missing: give a list of groups of completions.");
    const Json& groups = list_at(root["groups"], "groups");
    if (groups.empty()) throw FormatError("groups is empty: give at least one group.");
    for (size_t g = 0; g < groups.size(); ++g) read_group(groups[g], format("groups[{}]", g));
    check_presence();
    check_rewards();
    fill();
  }

 private:
  void read_group(const Json& value, const std::string& path) {
    const Json& group = object_with(value, path, {"baseline_reward", "margin", "completions"});
    if (!group.contains("completions")) throw FormatError("{}.completions is missing: give a list.", path);
    const Json& completions = list_at(group["completions"], path + ".completions");
    const PolicyLoss loss = fixture_.settings.policy_loss;
    if (completions.empty()) throw FormatError("{}.completions is empty: give at least one.", path);
    if (is_preference_loss(loss) && completions.size() != 2)
      throw FormatError("{} has {} completions: algo.policy_loss = {} needs [chosen, rejected].", path,
                        completions.size(), to_string(loss));
    if (fixture_.settings.adv_estimator == AdvEstimator::kGrpoPassk && completions.size() < 2)
      throw FormatError("{} has one completion: algo.adv_estimator = grpo_passk needs two or more in every group.",
                        path);

    if (group.contains("baseline_reward"))
      baselines_.push_back(number_at(group["baseline_reward"], path + ".baseline_reward"));
    else if (const ArrayNeed* need = find_need("baseline_reward"))
      throw missing(path, *need);
    margins_.push_back(group.contains("margin") ? number_at(group["margin"], path + ".margin") : 0);
    fixture_.batch.group_sizes.push_back(static_cast<int64_t>(completions.size()));
    for (size_t i = 0; i < completions.size(); ++i)
      read_completion(completions[i], format("{}.completions[{}]", path, i));
  }

  void read_completion(const Json& value, const std::string& path) {
    static const std::vector<std::string> kFields = completion_fields();
    const Json& completion = object_with(value, path, kFields);
    paths_.push_back(path);
    read_mask(completion, path);
    const auto length = static_cast<size_t>(fixture_.batch.lengths.back());

    if (completion.contains("finish_reason")) {
      const Json& reason = completion["finish_reason"];
      if (reason != "stop" && reason != "length")
        throw FormatError("{}.finish_reason is {}: allowed are \"stop\" and \"length\".", path, quoted(reason));
    }
    fixture_.batch.truncated.push_back(completion.value("finish_reason", "stop") == "length");
    for (const char* kind : {"reward", "rewards"})
      if (!completion.contains(kind)) first_without_.try_emplace(kind, path);
    if (completion.contains("reward")) columns_["reward"].push_back(number_at(completion["reward"], path + ".reward"));
    if (completion.contains("rewards")) read_rewards(completion["rewards"], path + ".rewards");

    for (const std::string& name : kTokenArrays) {
      std::string source = name;
      if (name == "old_values" && !completion.contains(name)) source = "values";  // held constant
      if (!completion.contains(source)) {
        first_without_.try_emplace(name, path);
        continue;
      }
      read_numbers(completion[source], path + "." + source, length, columns_[name]);
      ++present_[name];
    }
    for (const std::string& name : kVocabularyArrays) {
      if (!completion.contains(name)) {
        first_without_.try_emplace(name, path);
        continue;
      }
      const std::string at = path + "." + name;
      const Json& rows = list_at(completion[name], at);
      if (rows.size() != length) throw wrong_length(at, rows.size(), length);
      for (size_t t = 0; t < rows.size(); ++t) {
        const std::string row = format("{}[{}]", at, t);
        if (vocabulary_ == 0) vocabulary_ = list_at(rows[t], row).size();
        if (vocabulary_ == 0) throw FormatError("{} is empty: give one logit a word of the vocabulary.", row);
        if (list_at(rows[t], row).size() != vocabulary_)
          throw FormatError("{} has {} entries: the vocabulary has {} elsewhere. Give the same number everywhere.", row,
                            rows[t].size(), vocabulary_);
        read_numbers(rows[t], row, vocabulary_, columns_[name]);
      }
      ++present_[name];
    }
  }

  void read_mask(const Json& completion, const std::string& path) {
    if (!completion.contains("mask")) throw FormatError("{}.mask is missing: give one 0 or 1 a token.", path);
    const Json& mask = list_at(completion["mask"], path + ".mask");
    if (mask.empty()) throw FormatError("{}.mask is empty: a completion has at least one token.", path);
    bool counts = false;
    for (size_t t = 0; t < mask.size(); ++t) {
      if (!mask[t].is_number() || (mask[t] != 0 && mask[t] != 1))
        throw FormatError("{}.mask[{}] is {}: allowed are 0 and 1.", path, t, quoted(mask[t]));
      mask_.push_back(mask[t] == 1);
      counts |= mask[t] == 1;
    }
    fixture_.batch.lengths.push_back(static_cast<int64_t>(mask.size()));
    const bool truncated =
        fixture_.settings.mask_truncated_completions && completion.value("finish_reason", Json()) == "length";
    if (fixture_.settings.policy_loss == PolicyLoss::kRewardModel && (!counts || truncated))
      throw FormatError(
          "{}.mask has no 1{}: algo.policy_loss = reward_model reads the value at the last counted token.", path,
          counts ? " left (algo.mask_truncated_completions)" : "");
  }

  void read_rewards(const Json& value, const std::string& path) {
    const Json& rewards = list_at(value, path);
    if (num_functions_ == 0) num_functions_ = rewards.size();
    if (rewards.empty()) throw FormatError("{} is empty: give one reward a function.", path);
    if (rewards.size() != num_functions_)
      throw FormatError("{} has {} entries: the first completion has {}. Give one a reward function.", path,
                        rewards.size(), num_functions_);
    read_numbers(rewards, path, num_functions_, columns_["rewards"]);
    ++present_["rewards"];
  }

  void read_numbers(const Json& value, const std::string& path, size_t length, std::vector<double>& out) {
    const Json& numbers = list_at(value, path);
    if (numbers.size() != length) throw wrong_length(path, numbers.size(), length);
    for (size_t t = 0; t < length; ++t) {
      // The path of each entry is built for the message alone.
      if (!numbers[t].is_number()) number_at(numbers[t], format("{}[{}]", path, t));
      out.push_back(numbers[t].get<double>());
    }
  }

  static FormatError wrong_length(const std::string& path, size_t has, size_t want) {
    return FormatError("{} has {} entries: the mask has {}. Give one a token.", path, has, want);
  }
  static FormatError missing(const std::string& path, const ArrayNeed& need) {
    return FormatError("{}.{} is missing: {} needs it. Give it, or change that key.", path, need.array, need.because);
  }
  const ArrayNeed* find_need(const std::string& array) const {
    const auto found = std::find_if(needs_.begin(), needs_.end(), [&](const ArrayNeed& n) { return n.array == array; });
    return found == needs_.end() ? nullptr : &*found;
  }

  // An array is needed by a setting and missing, or some completions have it and others do not.
  void check_presence() {
    std::vector<std::string> names = kTokenArrays;
    names.insert(names.end(), kVocabularyArrays.begin(), kVocabularyArrays.end());
    names.erase(std::remove(names.begin(), names.end(), "token_rewards"), names.end());
    for (const std::string& name : names) {
      const size_t present = present_[name];
      if (present == paths_.size() || (present == 0 && !find_need(name))) continue;
      const std::string& where = first_without_[name];
      if (const ArrayNeed* need = find_need(name)) throw missing(where, *need);
      throw FormatError("{}.{} is missing, though other completions have it. Give it to all or to none.", where, name);
    }
  }

  void check_rewards() {
    const std::vector<std::string> kinds = {"reward", "rewards", "token_rewards"};
    present_["reward"] = columns_["reward"].size();
    std::vector<std::string> given;
    for (const std::string& kind : kinds)
      if (present_[kind] > 0) given.push_back(kind);
    if (given.size() > 1)
      throw FormatError("{} has {}: completions have exactly one of {}, the same everywhere. Keep one.", paths_.front(),
                        join(given, " or another completion "), join(kinds));
    const AlgoSection& settings = fixture_.settings;
    const std::string_view estimator = to_string(settings.adv_estimator);
    if (given.empty()) {
      if (settings.adv_estimator != AdvEstimator::kNone)
        throw FormatError("{} has no reward: algo.adv_estimator = {} needs one of {}.", paths_.front(), estimator,
                          join(kinds));
      if (settings.filter_groups)
        throw FormatError("{} has no reward: algo.filter_groups = true needs one of {}.", paths_.front(), join(kinds));
      return;
    }
    if (present_[given[0]] != paths_.size())
      throw FormatError("{}.{} is missing, though other completions have it. Give every completion its reward.",
                        first_without_[given[0]], given[0]);
    if (settings.adv_estimator == AdvEstimator::kGdpo && given[0] != "rewards")
      throw FormatError(
          "{}.rewards is missing: algo.adv_estimator = gdpo normalises each reward alone. Give rewards in place "
          "of {}.",
          paths_.front(), given[0]);
    const AlgoContext& context = fixture_.context;
    const auto check_count = [&](const char* name, size_t has) {
      if (has != 0 && has != num_functions_)
        throw FormatError("reward.{} has {} entries, rewards have {}. Give one a reward function.", name, has,
                          num_functions_);
    };
    if (given[0] != "rewards") return;
    check_count("functions", context.reward_names.size());
    check_count("weights", context.reward_weights.size());
  }

  void fill() {
    LossBatch& batch = fixture_.batch;
    const auto num = static_cast<int64_t>(paths_.size());
    const auto column = [&](const std::string& name) {
      const std::vector<double>& numbers = columns_[name];
      return numbers.empty() ? at::Tensor() : at::tensor(numbers, at::kDouble);
    };
    const auto leaf = [&](at::Tensor array) {
      if (array.defined()) array.set_requires_grad(true);
      return array;
    };
    batch.mask = at::tensor(mask_, at::kByte).to(at::kBool);
    batch.reward = column("reward");
    batch.rewards = column("rewards");
    if (batch.rewards.defined()) batch.rewards = batch.rewards.view({num, -1});
    batch.token_rewards = column("token_rewards");
    if (static_cast<int64_t>(baselines_.size()) == batch.num_groups())
      batch.baseline_rewards = at::tensor(baselines_, at::kDouble);
    batch.margins = at::tensor(margins_, at::kDouble);
    batch.old_logprobs = column("old_logprobs");
    batch.behavior_logprobs = column("behavior_logprobs");
    batch.ref_logprobs = column("ref_logprobs");
    batch.teacher_logprobs = column("teacher_logprobs");
    batch.old_values = column("old_values");
    fixture_.entropies = column("entropies");
    fixture_.policy_logprobs = leaf(column("policy_logprobs"));
    fixture_.values = leaf(column("values"));
    const auto logits = [&](const std::string& name) {
      const at::Tensor flat = column(name);
      return flat.defined() ? flat.view({batch.num_tokens(), -1}) : flat;
    };
    fixture_.policy_logits = leaf(logits("policy_logits"));
    fixture_.teacher_logits = logits("teacher_logits");
  }

  LossFixture& fixture_;
  const std::vector<ArrayNeed> needs_;
  size_t num_functions_ = 0, vocabulary_ = 0;
  std::vector<uint8_t> mask_;
  std::vector<double> baselines_, margins_;
  std::vector<std::string> paths_;  // of the completions
  std::map<std::string, std::vector<double>> columns_;
  std::map<std::string, size_t> present_;  // completions that have the array
  std::map<std::string, std::string> first_without_;
};

}  // namespace

LossFixture parse_loss_fixture(const std::string& text) {
  const Json root = parse_strictly(text);
  refuse_non_finite(root, "");
  object_with(root, "", {"comment", "algo", "reward", "rollout", "groups"});
  LossFixture fixture;
  fixture.settings = parse_settings(root);
  fixture.context = parse_context(root);
  check_context(fixture.settings, fixture.context);
  Reader(root, fixture);
  fixture.batch.check();
  return fixture;
}

LossFixture read_loss_fixture(const std::string& path) {
  const std::string text = read_file(path);
  try {
    return parse_loss_fixture(text);
  } catch (const ConfigError& error) {
    throw ConfigError("{}: {}", path, error.what());
  } catch (const FormatError& error) {
    throw FormatError("{}: {}", path, error.what());
  } catch (const NumericsError& error) {
    throw NumericsError("{}: {}", path, error.what());
  }
}

}  // namespace temper
