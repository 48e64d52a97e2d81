// What a stage will take of memory, on paper before in practice: printed by --dry-run, and a refusal where it cannot
// fit.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "model/model_config.h"

namespace temper {

struct MemoryLine {
  std::string what;
  std::string arithmetic;
  double bytes = 0;
};

struct MemoryPlan {
  std::vector<MemoryLine> lines;
  double free_bytes = 0;  // where the model will live
  double total_bytes() const;
  std::string table() const;
};

// The shape of the model that a stage starts from; directory empty: [model] init.
ModelConfig stage_model_config(const StageConfig& stage, const std::string& directory);

MemoryPlan plan_memory(const StageConfig& stage, const ModelConfig& model);

// ConfigError with the numbers, where the plan exceeds the memory that is free.
void refuse_if_too_large(const StageConfig& stage, const std::string& directory);

}  // namespace temper
