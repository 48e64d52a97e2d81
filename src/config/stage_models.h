// Which models a stage works with, and where they come from: directories, or "stage:NAME", the model that an earlier
// stage of the same run made. Pure functions of the configuration; nothing is opened here. Used by validation before a
// run, and by apps, which turns names of stages into directories.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace temper {

// NAME of "stage:NAME"; nothing for a directory.
std::optional<std::string> stage_reference(std::string_view path);

// Index of the stage of that name; nothing if there is none.
std::optional<size_t> stage_index(const Config& config, std::string_view name);

// Index of the stage whose model this one starts from: the one that model.path names, else the latest before it that
// is no reward_model stage. -1: its own [model] (own_model is true).
int64_t start_stage(const Config& config, size_t stage);

// The [model] that the stage's model descends from: its shape and tokenizer are known before anything ran.
const ModelSection& origin_model(const Config& config, size_t stage);

// The stage trains a reward model: it hands on no policy and generates nothing.
bool makes_reward_model(const StageConfig& stage);
// Completions are generated and scored by reward.functions before, during or after the stage.
bool evaluates(const StageConfig& stage);
// The stage scores completions with reward.model.
bool uses_reward_model(const StageConfig& stage);

enum class ModelRole { kStart, kReference, kTeacher, kCritic, kReward };

struct ModelUse {
  ModelRole role = ModelRole::kStart;
  std::string key;   // "model.teacher"
  std::string path;  // directory or "stage:NAME"; never empty
};

// The models that the stage's settings name and that it needs.
std::vector<ModelUse> used_models(const StageConfig& stage);

}  // namespace temper
