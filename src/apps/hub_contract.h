// What the trainer's hub and a rollout worker each derive from the configuration, and must agree on: who they are in
// the protocol (comm/rollout_messages.h), the limits of their wire, where keys and hub.json lie. Pure functions but for
// build_identity().
#pragma once
#include <memory>
#include <string>

#include "comm/channel.h"
#include "comm/weight_link.h"
#include "config/config.h"
#include "data/tokenizer.h"
#include "model/model_config.h"

namespace temper {

// The program's version, and a hash of its file: workers of another build are refused.
std::string build_identity();
// Hash of the shape and of the tokenizer; a value head counts for nothing.
std::string model_identity(ModelConfig model, const Tokenizer& tokenizer);
// Hash of what generation and rewards depend on beside the lease: the stage's name, reward functions, their task, the
// types that are computed in. Not the number of workers, nor a machine's limits.
std::string config_identity(const StageConfig& stage);

// Of both ends: a group of the greatest length fits a message.
ChannelSettings hub_channel(const StageConfig& stage);

// Both ends': the links that weights go by, where the configuration wants them and the model is on a GPU; else null.
std::shared_ptr<WeightLinks> weight_links(const StageConfig& stage, at::Device device);

bool is_plain_text(const StageConfig& stage);                                        // async.keys = "none"
std::string key_folder(const StageConfig& stage, const std::string& run_directory);  // of keys that are used
std::string hub_file_path(const std::string& run_directory);

}  // namespace temper
