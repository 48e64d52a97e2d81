#include "rollout/reward_model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "model/hf_directory.h"
#include "model/packed_sequences.h"

namespace temper {

ModelReward::ModelReward(const std::string& directory, c10::ScalarType compute, c10::Device device)
    : directory_(directory) {
  const LoadedModel loaded = load_model(directory);
  if (!loaded.config.value_head)
    throw ConfigError(
        "reward.model = {}: it is a {}, which scores nothing. Give a model with a score head, as a reward_model stage "
        "makes it.",
        directory, architecture_name(loaded.config));
  model_ = std::make_unique<Transformer>(loaded.config, compute, /*trainable=*/false, WeightFormat::kCompute, device);
  model_->load(loaded.parameters, 0);
}

std::future<std::vector<RewardOutcome>> ModelReward::score(std::shared_ptr<const RolloutGroup> group, Deadline) {
  const at::NoGradGuard no_grad;
  const ModelConfig& config = model_->config();
  const std::vector<int32_t>& prompt = group->prompt.token_ids;
  const auto known = [&](const std::vector<int32_t>& ids) {
    return std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= 0 && id < config.vocab_size; });
  };
  std::vector<RewardOutcome> outcomes(group->completions.size());
  SequencePacker packer(RowOf::kToken);
  packer.begin_group(prompt);
  std::vector<int64_t> last;   // of the packed rows, one a completion that is scored
  std::vector<size_t> scored;  // its index
  int64_t num_rows = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const std::vector<int32_t>& ids = group->completions[i].token_ids;
    const auto length = static_cast<int64_t>(prompt.size() + ids.size());
    if (ids.empty())
      outcomes[i].error = "the completion has no token";
    else if (!known(ids) || !known(prompt))
      outcomes[i].error = format("a token is outside the vocabulary of {}, {} ids", directory_, config.vocab_size);
    else if (length > config.max_position_embeddings)
      outcomes[i].error =
          format("{} tokens exceed the context of {}, {}", length, directory_, config.max_position_embeddings);
    if (!outcomes[i].error.empty()) continue;
    packer.add(ids);
    num_rows += static_cast<int64_t>(ids.size());
    last.push_back(num_rows - 1);
    scored.push_back(i);
  }
  if (!scored.empty()) {
    const PackedSequences packed = packer.finish();
    const auto attention = [&](int64_t, const at::Tensor& qkv) {
      return packed_attention_qkv(qkv, config.num_heads, config.num_kv_heads, packed.segments,
                                  model_->attention_scale());
    };
    const at::Tensor hidden = model_->hidden_states(packed.token_ids, packed.positions, attention);
    const at::Tensor rows = packed.rows.index_select(0, at::tensor(last, at::kLong));
    const at::Tensor values = model_->values(hidden.index_select(0, rows.to(hidden.device()))).cpu().contiguous();
    for (size_t k = 0; k < scored.size(); ++k)
      outcomes[scored[k]].value = static_cast<double>(values.const_data_ptr<float>()[k]);
  }
  std::promise<std::vector<RewardOutcome>> done;
  done.set_value(std::move(outcomes));
  return done.get_future();
}

}  // namespace temper
