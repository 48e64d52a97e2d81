// From the table: the resolved configuration, the help text, docs/configuration.md.
#include <algorithm>

#include "config/load.h"
#include "config/table.h"
#include "core/format.h"

namespace temper {
namespace {

std::string section_of(const std::string& key) { return key.substr(0, key.find('.')); }
std::string table_of(const std::string& key) { return key.substr(0, key.rfind('.')); }
std::string leaf_of(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// "[algo]" and its keys, then "[algo.overlong_buffer]" and its keys. `prefix`: "stage." inside a stage.
template <class Keep>
std::string tables_text(const Sections& sections, const std::string& prefix, const Keep& keep) {
  std::vector<std::pair<std::string, std::string>> tables;  // in the order of the key table
  for (const KeySpec& key : key_table()) {
    const auto text = field_text(key, sections);
    if (!text || !keep(key)) continue;
    const std::string name = table_of(key.name);
    auto found = std::find_if(tables.begin(), tables.end(), [&name](const auto& table) { return table.first == name; });
    if (found == tables.end()) found = tables.insert(tables.end(), {name, ""});
    found->second += format("{} = {}\n", leaf_of(key.name), *text);
  }
  std::string result;
  for (const auto& [name, lines] : tables) result += format("\n[{}{}]\n{}", prefix, name, lines);
  return result;
}

bool is_init_key(const KeySpec& key) { return key.name.starts_with("model.init."); }
bool is_model_source(const KeySpec& key) { return is_init_key(key) || key.name == "model.path"; }

std::string stage_text(const StageConfig& stage, const Config& config, bool is_first) {
  const bool own_algo = stage.algo != config.algo;
  const bool own_model = stage.own_model && !is_first;
  const auto keep = [&](const KeySpec& key) {
    if (key.for_run) return false;
    if (own_algo && section_of(key.name) == "algo") return true;
    if (is_model_source(key)) {
      if (stage.model.init.family.empty() ? is_init_key(key) : key.name == "model.path") return false;
      if (own_model) return true;
    }
    return field_text(key, stage) != field_text(key, config);
  };
  return format("\n[[stage]]\nname = {}\n", toml_text(stage.name)) + tables_text(stage, "stage.", keep);
}

}  // namespace

std::string dump_toml(const Config& config) {
  const bool has_init = !config.model.init.family.empty();
  std::string text = "# Resolved configuration: every key with the value that holds.\n";
  text += tables_text(config, "", [has_init](const KeySpec& key) { return has_init || !is_init_key(key); });
  const StageConfig& first = config.stages.front();
  const bool needs_stages = config.stages.size() > 1 || static_cast<const Sections&>(first) != config ||
                            first.name != to_string(config.algo.preset);
  if (needs_stages)
    for (size_t i = 0; i < config.stages.size(); ++i) text += stage_text(config.stages[i], config, i == 0);
  return text;
}

std::string config_help() {
  std::string text;
  for (const SectionSpec& section : section_table()) {
    text += format("\n[{}]  {}\n", section.name, section.help);
    for (const KeySpec& key : key_table()) {
      if (section_of(key.name) != section.name) continue;
      const std::string allowed = key.allowed_text();
      text += format("  --{}=<{}{}>  (default: {})\n      {}", key.name, key.type_text(),
                     key.unit_text.empty() ? "" : ", " + key.unit_text, key.default_text(), key.help);
      text += allowed.empty() ? "\n" : format(" Allowed: {}.\n", allowed);
    }
  }
  return text;
}

std::string config_markdown() {
  const auto cell = [](const std::string& text) {
    std::string escaped;
    for (const char c : text) {
      if (c == '|') escaped += '\\';
      escaped += c;
    }
    return escaped;
  };
  std::string text =
      "# Configuration\n\n"
      "<!-- Made by `temper --help-config-markdown` from the table in src/config/table.cpp; change it there. -->\n\n"
      "A run is described by one TOML file. On the command line `--section.key=value` sets a key in every stage and\n"
      "`--stage.NAME.section.key=value` in one; a command line wins over the file. Strings need no quotes there, lists "
      "no\n"
      "brackets. An unknown key is an error. `temper run CONFIG --dry-run` prints the resolved configuration.\n\n"
      "A pipeline is a list of `[[stage]]`, each with a `name` and any section of its own; without `[[stage]]` there "
      "is one\n"
      "stage, named after `algo.preset`. A stage that sets `algo.preset` starts its `[algo]` from that preset: keys of "
      "the\n"
      "root `[algo]` do not reach it. An override of `[algo]` is ignored, with a warning, in a stage whose loss does "
      "not use\n"
      "the key. Keys marked * hold for the whole run.\n\n"
      "A stage without its own `[model]` goes on with the model of the latest stage before it that is no "
      "`reward_model` stage.\n"
      "Where a key takes a model directory, `\"stage:NAME\"` names what an earlier stage of the same run made:\n"
      "`reward = {functions = [\"task\", \"model\"], weights = [0, 1], model = \"stage:reward_model\"}`.\n";
  for (const SectionSpec& section : section_table()) {
    text += format("\n## [{}]\n\n{}\n\n| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n",
                   section.name, section.help);
    for (const KeySpec& key : key_table()) {
      if (section_of(key.name) != section.name) continue;
      const std::string unit = key.unit_text.empty() ? "" : " (" + key.unit_text + ")";
      text += format("| `{}`{} | {}{} | {} | {} | {} |\n", key.name.substr(section.name.size() + 1),
                     key.for_run ? " *" : "", key.type_text(), unit, cell(key.default_text()), cell(key.allowed_text()),
                     cell(key.help));
    }
  }
  text +=
      "\n## Presets\n\nWhat each `algo.preset` sets; every other key keeps its default.\n\n| preset | sets |\n| --- | "
      "--- |\n";
  const Sections defaults;
  for (size_t i = 0; i < choice_names<Preset>().size(); ++i) {
    Sections sections;
    sections.algo = algo_preset(static_cast<Preset>(i));
    std::vector<std::string> changed;
    for (const KeySpec& key : key_table())
      if (key.name.starts_with("algo.") && key.name != "algo.preset" &&
          field_text(key, sections) != field_text(key, defaults))
        changed.push_back(format("{} {}", key.name.substr(5), *field_text(key, sections)));
    text +=
        format("| `{}` | {} |\n", choice_names<Preset>()[i], changed.empty() ? "the defaults" : cell(join(changed)));
  }
  return text;
}

}  // namespace temper
