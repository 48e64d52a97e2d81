// Checks that need more than one key. Internal to config.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"

namespace temper {

// What cannot work in this stage, one message each: keys, values, fix.
std::vector<std::string> stage_conflicts(const StageConfig& stage);
// The same of the keys that hold for the whole run.
std::vector<std::string> run_conflicts(const Config& config);
// What cannot work among the stages: models of this stage that are named "stage:NAME".
std::vector<std::string> reference_conflicts(const Config& config, size_t stage);
// What works but is probably not meant.
std::vector<std::string> stage_doubts(const StageConfig& stage);
std::vector<std::string> run_doubts(const Config& config);
std::vector<std::string> pipeline_doubts(const std::vector<StageConfig>& stages);

}  // namespace temper
