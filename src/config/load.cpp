// Settings in layers, later ones win: defaults and preset, root sections of the file, the stage's own, --section.key,
// --stage.NAME.section.key.
#include "config/load.h"

#include <algorithm>
#include <array>
#include <set>

#include "config/algo_rules.h"
#include "config/stage_models.h"
#include "config/table.h"
#include "config/validate.h"
#include "config/value.h"
#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

using Settings = std::vector<Setting>;

bool has_key(const Settings& settings, std::string_view key) {
  return std::any_of(settings.begin(), settings.end(), [key](const Setting& s) { return s.key == key; });
}

bool gives_text(const Settings& settings, std::string_view key) {
  for (const Setting& setting : settings)
    if (const auto* text = std::get_if<std::string>(&setting.value.data); setting.key == key && text && !text->empty())
      return true;
  return false;
}

// REQUIRES: every setting was checked.
void apply_one(const Setting& setting, Sections* sections) {
  const KeySpec* key = find_key(setting.key);
  const auto error = assign(*key, setting.value, sections);
  TEMPER_CHECK(!error, "{}", *error);
}

// A layer that names the model or the data takes the place of the other way to name it below.
void apply_layer(const Settings& layer, Sections* sections) {
  if (gives_text(layer, "model.path")) sections->model.init = ModelInit();
  if (has_key(layer, "model.init.family")) sections->model.path.clear();
  if (gives_text(layer, "data.path")) sections->data.task.clear();
  if (gives_text(layer, "data.task")) sections->data.path.clear();
  for (const Setting& setting : layer)
    if (setting.key != "algo.preset") apply_one(setting, sections);
}

Sections apply_layers(const std::vector<const Settings*>& layers) {
  Sections sections;
  for (const Settings* layer : layers)
    for (const Setting& setting : *layer)
      if (setting.key == "algo.preset") apply_one(setting, &sections);
  sections.algo = algo_preset(sections.algo.preset);
  for (const Settings* layer : layers) apply_layer(*layer, &sections);
  return sections;
}

Settings without_algo(const Settings& settings) {
  Settings rest;
  for (const Setting& setting : settings)
    if (!setting.key.starts_with("algo.")) rest.push_back(setting);
  return rest;
}

void resolve_defaults(const std::string& stem, Sections* s) {
  if (s->run.name.empty()) s->run.name = stem;
  if (!s->algo.whiten_advantages) s->algo.whiten_advantages = s->algo.whitens();
  if (s->reward.functions.empty() && !s->data.task.empty()) s->reward.functions = {"task"};
}

class Loader {
 public:
  Loader(std::string_view toml, const std::vector<std::string>& overrides, const std::string& origin)
      : origin_(origin) {
    ParsedFile file = read_toml(toml, origin, &errors_);
    has_stages_ = !file.stages.empty();
    root_ = checked(std::move(file.root));
    stages_ = std::move(file.stages);
    for (StageSettings& stage : stages_) {
      for (const Setting& setting : stage.settings) refuse_whole_run_key(setting);
      stage.settings = checked(std::move(stage.settings));
    }
    for (const std::string& text : overrides) add_override(text);
  }

  Config load() {
    Config config;
    if (!has_stages_) stages_.push_back({"", origin_, {}});
    static_cast<Sections&>(config) = apply_layers({&root_, &everywhere_});
    name_stages();
    throw_if_wrong();
    for (const StageSettings& stage : stages_) {
      // Reward models hand on no policy to go on with.
      const bool is_first = std::all_of(config.stages.begin(), config.stages.end(), makes_reward_model);
      config.stages.push_back(resolve_stage(stage, is_first));
    }
    resolve_defaults(stem(), &config);
    if (!has_stages_) static_cast<Sections&>(config) = config.stages.front();
    for (size_t i = 0; i < config.stages.size(); ++i) check(config, i);
    for (const std::string& conflict : run_conflicts(config)) errors_.push_back(format("{}: {}", origin_, conflict));
    throw_if_wrong();
    for (const std::string& doubt : run_doubts(config)) add_warning(doubt);
    for (const std::string& doubt : pipeline_doubts(config.stages)) add_warning(doubt);
    config.warnings = std::move(warnings_);
    return config;
  }

  AlgoSection load_algo() {
    throw_if_wrong();
    Sections sections = apply_layers({&root_, &everywhere_});
    sections.algo.whiten_advantages = sections.algo.whitens();
    for (const std::string& conflict : algo_conflicts(sections.algo)) errors_.push_back(conflict);
    throw_if_wrong();
    return sections.algo;
  }

 private:
  void refuse_whole_run_key(const Setting& setting) {
    const KeySpec* key = find_key(setting.key);
    if (!key || !key->for_run) return;
    const size_t dot = setting.key.find('.');
    errors_.push_back(format("{}: {} holds for the whole run, a stage cannot have its own. Set it in [{}].",
                             setting.place, setting.key, setting.key.substr(0, dot)));
  }

  // The settings without those that are wrong, whose errors are kept.
  Settings checked(Settings settings) {
    Settings good;
    Sections scratch;
    for (Setting& setting : settings) {
      const KeySpec* key = find_key(setting.key);
      const auto error = key ? assign(*key, setting.value, &scratch) : unknown_key_message(setting.key);
      if (error)
        errors_.push_back(format("{}: {}", setting.place, *error));
      else
        good.push_back(std::move(setting));
    }
    return good;
  }

  void add_override(const std::string& text) {
    Override override = read_override(text, &errors_);
    if (!override.stage.empty())
      for (const Setting& setting : override.settings) refuse_whole_run_key(setting);
    Settings& target = override.stage.empty() ? everywhere_ : one_stage_[override.stage];
    for (Setting& setting : checked(std::move(override.settings))) target.push_back(std::move(setting));
  }

  void name_stages() {
    std::vector<std::string> names;
    for (StageSettings& stage : stages_) {
      if (stage.name.empty()) stage.name = to_string(apply_layers({&root_, &stage.settings, &everywhere_}).algo.preset);
      if (std::find(names.begin(), names.end(), stage.name) != names.end())
        errors_.push_back(format("{}: two stages are named \"{}\". Give each [[stage]] its own name = \"…\".",
                                 stage.place, stage.name));
      names.push_back(stage.name);
    }
    for (const auto& [name, settings] : one_stage_)
      if (std::find(names.begin(), names.end(), name) == names.end() && !settings.empty())
        errors_.push_back(
            format("{}: there is no stage \"{}\". Stages here: {}.", settings.front().place, name, join(names)));
  }

  // is_first: no stage before it made a policy.
  StageConfig resolve_stage(const StageSettings& stage, bool is_first) {
    static const Settings kNothing;
    const auto found = one_stage_.find(stage.name);
    const Settings& own_overrides = found == one_stage_.end() ? kNothing : found->second;
    const bool own_preset = has_key(stage.settings, "algo.preset") || has_key(own_overrides, "algo.preset");
    const Settings root = own_preset ? without_algo(root_) : root_;
    const Settings overrides = reaching_overrides(stage, root, own_overrides);

    StageConfig resolved;
    static_cast<Sections&>(resolved) = apply_layers({&root, &stage.settings, &overrides, &own_overrides});
    resolved.name = stage.name;
    const auto names_model = [](const Settings& settings) {
      return std::any_of(settings.begin(), settings.end(),
                         [](const Setting& s) { return s.key == "model.path" || s.key.starts_with("model.init."); });
    };
    resolved.own_model = (is_first || names_model(stage.settings) || names_model(own_overrides)) &&
                         !stage_reference(resolved.model.path);
    const std::array layers = {&root, &stage.settings, &overrides, &own_overrides};
    const bool sets_rollout_is = std::any_of(layers.begin(), layers.end(),
                                             [](const Settings* layer) { return has_key(*layer, "algo.rollout_is"); });
    if (!sets_rollout_is) resolved.algo.rollout_is = correction_of_mismatch(resolved);
    for (const Settings* layer : {&root, &stage.settings, &own_overrides}) warn_unused(*layer, resolved);
    resolve_defaults(stem(), &resolved);
    return resolved;
  }

  // Overrides for every stage, less those of [algo] that this stage's loss does not use, and those that name another
  // model where the stage goes on with an earlier stage's.
  Settings reaching_overrides(const StageSettings& stage, const Settings& root, const Settings& own_overrides) {
    Settings reaching;
    const Sections file = apply_layers({&root, &stage.settings, &own_overrides});
    const AlgoSection& file_algo = file.algo;
    for (const Setting& setting : everywhere_) {
      const bool names_model = setting.key == "model.path" || setting.key.starts_with("model.init.");
      if (names_model && stage_reference(file.model.path)) continue;
      // Among several stages "--algo.preset=dapo" is meant for those that generate, not for the sft before them.
      if (stages_.size() > 1 && (setting.key == "algo.preset" || setting.key == "algo.policy_loss")) {
        const Settings alone = {setting};
        const AlgoSection changed = apply_layers({&root, &stage.settings, &alone, &own_overrides}).algo;
        if (changed.trains_on_rollouts() != file_algo.trains_on_rollouts()) {
          warn_in(stage.name,
                  format("{} is ignored: this stage trains with algo.policy_loss = {}. Write --stage.{}.{} to"
                         " change it all the same.",
                         setting.place, to_string(file_algo.policy_loss), stage.name, setting.place.substr(2)));
          continue;
        }
      }
      reaching.push_back(setting);
    }
    for (bool dropped = true; dropped;) {
      dropped = false;
      const AlgoSection algo = apply_layers({&root, &stage.settings, &reaching, &own_overrides}).algo;
      for (size_t i = 0; i < reaching.size() && !dropped; ++i) {
        // KL and entropy terms would work in sft, but an override meant for the rollouts must not load a reference
        // there.
        const bool for_rollouts = reaching[i].key.starts_with("algo.kl_") || reaching[i].key == "algo.entropy_coef";
        if (is_used(reaching[i].key, algo) && !(for_rollouts && !algo.trains_on_rollouts())) continue;
        warn_in(stage.name, format("{} is ignored: algo.preset = {} with algo.policy_loss = {} does not use it.",
                                   reaching[i].place, to_string(algo.preset), to_string(algo.policy_loss)));
        reaching.erase(reaching.begin() + static_cast<std::ptrdiff_t>(i));
        dropped = true;
      }
    }
    return reaching;
  }

  // A key that changes the preset's value and yet nothing.
  void warn_unused(const Settings& layer, const StageConfig& stage) {
    Sections preset;
    preset.algo = algo_preset(stage.algo.preset);
    preset.algo.whiten_advantages = preset.algo.whitens();
    for (const Setting& setting : layer) {
      if (is_used(setting.key, stage.algo)) continue;
      const KeySpec& key = *find_key(setting.key);
      if (field_text(key, stage) == field_text(key, preset)) continue;
      warn_in(stage.name, format("{}: {} = {} has no effect with the stage's other settings (algo.preset = {},"
                                 " algo.policy_loss = {}, algo.adv_estimator = {}).",
                                 setting.place, setting.key, toml_text(setting.value), to_string(stage.algo.preset),
                                 to_string(stage.algo.policy_loss), to_string(stage.algo.adv_estimator)));
    }
  }

  void check(const Config& config, size_t index) {
    const StageConfig& stage = config.stages[index];
    const std::string where = stages_.size() > 1 ? format("{}: stage {}", origin_, stage.name) : origin_;
    for (const std::string& conflict : stage_conflicts(stage)) errors_.push_back(format("{}: {}", where, conflict));
    for (const std::string& conflict : reference_conflicts(config, index))
      errors_.push_back(format("{}: {}", where, conflict));
    for (const std::string& doubt : stage_doubts(stage)) warn_in(stage.name, doubt);
  }

  void warn_in(const std::string& stage, const std::string& text) {
    add_warning(stages_.size() > 1 ? format("stage {}: {}", stage, text) : text);
  }

  void add_warning(const std::string& warning) {
    if (std::find(warnings_.begin(), warnings_.end(), warning) == warnings_.end()) warnings_.push_back(warning);
  }

  void throw_if_wrong() const {
    std::vector<std::string> once;
    for (const std::string& error : errors_)
      if (std::find(once.begin(), once.end(), error) == once.end()) once.push_back(error);
    if (once.empty()) return;
    if (once.size() == 1) throw ConfigError("{}", once.front());
    throw ConfigError("{} errors in the configuration:\n  {}", once.size(), join(once, "\n  "));
  }

  std::string stem() const {
    const size_t begin = origin_.rfind('/') + 1;
    const size_t dot = origin_.rfind('.');
    return origin_.substr(begin, dot == std::string::npos || dot <= begin ? std::string::npos : dot - begin);
  }

  std::string origin_;
  bool has_stages_ = false;
  Settings root_;
  Settings everywhere_;
  std::map<std::string, Settings> one_stage_;
  std::vector<StageSettings> stages_;
  std::vector<std::string> errors_;
  std::vector<std::string> warnings_;
};

}  // namespace

Config parse_config(std::string_view toml, const std::vector<std::string>& overrides, const std::string& origin) {
  return Loader(toml, overrides, origin).load();
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config(read_file(path), overrides, path);
}

AlgoSection parse_algo(const std::vector<std::string>& settings) {
  std::vector<std::string> overrides;
  for (const std::string& setting : settings) overrides.push_back("algo." + setting);
  return Loader("", overrides, "algo").load_algo();
}

}  // namespace temper
