// From a TOML file and command-line overrides to a checked Config, and back to text. Errors are ConfigErrors that list
// everything wrong at once, each with its place, key, value and what is allowed. No torch, no file but the one named.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace temper {

// overrides: "section.key=value" or "stage.NAME.section.key=value", with or without leading dashes.
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {});
// The same from text; `origin` is what errors name, and its stem the default of run.name.
Config parse_config(std::string_view toml, const std::vector<std::string>& overrides = {},
                    const std::string& origin = "config.toml");

// [algo] alone, without the checks that need other sections: "key=value", as "rollout_rs.token_k1=[0.5, 2]".
AlgoSection parse_algo(const std::vector<std::string>& settings);

// The resolved configuration as TOML: loading it gives an equal Config.
std::string dump_toml(const Config& config);
// One line a key with unit, default and allowed values; and docs/configuration.md.
std::string config_help();
std::string config_markdown();

}  // namespace temper
