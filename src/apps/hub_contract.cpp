#include "apps/hub_contract.h"

#include <algorithm>

#include "apps/model_source.h"
#include "config/table.h"
#include "core/files.h"
#include "core/format.h"
#include "core/hash.h"

namespace temper {
namespace {

// Of a completion on the wire: token, two log-probabilities, version, mask; and text, which is seldom longer than this.
constexpr int64_t kBytesPerToken = 4 + 4 + 4 + 8 + 1 + 16;
constexpr int64_t kBytesPerCompletion = 1024;

bool matters(const std::string& key) {
  return key.starts_with("reward.") || key.starts_with("data.generated.") || key == "data.task" ||
         key == "run.deterministic" || key == "rollout.environment" || key == "rollout.max_turns";
}

}  // namespace

std::string build_identity() {
  const MappedFile program("/proc/self/exe");
  return format("{} ({})", TEMPER_VERSION, hex64(xxh3_64(program.data(), program.size_bytes())));
}

std::string model_identity(ModelConfig model, const Tokenizer& tokenizer) {
  model.value_head = false;
  model.source_json.clear();
  model.source_generation_json.clear();
  Xxh3Stream hash;
  const auto add = [&hash](const std::string& text) {
    const auto size = static_cast<uint64_t>(text.size());
    hash.update(&size, sizeof size);
    hash.update(text.data(), text.size());
  };
  add(to_config_json(model, at::kFloat));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) add(tokenizer.token_bytes(id));
  for (const int32_t id : tokenizer.eos_ids()) add(std::to_string(id));
  return hash.digest_hex();
}

std::string config_identity(const StageConfig& stage) {
  const ComputeType type = rollout_type(stage);
  std::string text = format("stage {} {} {}", stage.name, type.compute == at::kBFloat16 ? "bf16" : "f32",
                            type.weights == WeightFormat::kInt8 ? "int8" : "plain");
  for (const KeySpec& key : key_table())
    if (matters(key.name)) text += format("\n{} = {}", key.name, field_text(key, stage).value_or("unset"));
  return xxh3_128_hex(text);
}

ChannelSettings hub_channel(const StageConfig& stage) {
  const RolloutSection& rollout = stage.rollout;
  const int64_t completions = std::max(rollout.num_generations, stage.eval.num_completions);
  const int64_t group = completions * (rollout.max_completion_length * kBytesPerToken + kBytesPerCompletion);
  ChannelSettings settings;
  settings.max_payload_bytes = std::max(settings.max_payload_bytes, 2 * group);
  settings.window_bytes = std::max(settings.window_bytes, 4 * settings.max_payload_bytes);
  settings.allow_plain_text = is_plain_text(stage);
  return settings;
}

std::shared_ptr<WeightLinks> weight_links(const StageConfig& stage, at::Device device) {
  constexpr std::chrono::seconds kTimeout{20};  // to connect, and of each piece
  if (stage.async.weight_transport != WeightTransport::kNccl || !device.is_cuda()) return nullptr;
  return nccl_weight_links(device.index(), kTimeout);
}

bool is_plain_text(const StageConfig& stage) { return stage.async.keys == "none"; }

std::string key_folder(const StageConfig& stage, const std::string& run_directory) {
  return stage.async.keys.empty() ? run_directory + "/keys" : stage.async.keys;
}

std::string hub_file_path(const std::string& run_directory) { return run_directory + "/hub.json"; }

}  // namespace temper
