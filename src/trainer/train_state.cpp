#include "trainer/train_state.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/tensor_parallel.h"

namespace temper {

HostState::HostState(const TrainLoopParts& parts, bool filled) : ranks_(parts.ranks) {
  const auto append_learner = [&](const std::string& prefix, const std::string& optim, const TrainerModel& model,
                                  const AdamW& optimizer) {
    append(prefix, model.parameters(), model.config(), filled);
    append(optim + "exp_avg/", optimizer.exp_avg(), model.config(), filled);
    append(optim + "exp_avg_sq/", optimizer.exp_avg_sq(), model.config(), filled);
  };
  append_learner("model/", "optim/", *parts.policy, *parts.optimizer);
  if (parts.critic_optimizer != nullptr)
    append_learner("critic/", "critic_optim/", *parts.critic, *parts.critic_optimizer);
}

FlatParameters HostState::on_host(const FlatParameters& tensors, const ModelConfig& model, bool filled) const {
  Communicator* group = ranks_.tensor_group();
  if (group == nullptr) return tensors.to(at::kCPU);
  if (!filled) return FlatParameters(model);
  // Every group has the same; that of the first rank puts it together.
  if (ranks_.data_parallel().rank() > 0) return {};
  FlatParameters whole = join_model(model, tensors, *group, at::kCPU);
  return ranks_.leads() ? std::move(whole) : FlatParameters();
}

void HostState::append(const std::string& group, const FlatParameters& tensors, const ModelConfig& model, bool filled) {
  const FlatParameters host = on_host(tensors, model, filled);
  for (const ParameterSpec& spec : host.specs()) entries_.push_back({group + spec.name, host[spec.name]});
  if (!tensors.flat().is_cpu() || ranks_.tensor_group() != nullptr) copies_.push_back({tensors, host, model});
}

void HostState::put_back() const {
  const Communicator* group = ranks_.tensor_group();
  for (const Copy& copy : copies_)
    at::Tensor(copy.own.flat())
        .copy_(group == nullptr ? copy.host.flat()
                                : part_parameters(copy.model, copy.host, {group->rank(), group->size()}).flat());
}

std::string save_counters(const TrainCounters& counters, const TrainLoopParts& parts) {
  nlohmann::json blob = {{"step", counters.step},
                         {"policy_version", counters.policy_version},
                         {"next_serial", counters.next_serial},
                         {"optimizer_steps", parts.optimizer->num_steps()},
                         {"kl_coef", parts.algorithm->kl_coef()}};
  if (parts.critic_optimizer != nullptr) blob["critic_optimizer_steps"] = parts.critic_optimizer->num_steps();
  return blob.dump();
}

TrainCounters load_counters(const std::string& text, const TrainLoopParts& parts) {
  try {
    const nlohmann::json blob = nlohmann::json::parse(text);
    parts.optimizer->set_num_steps(blob.at("optimizer_steps").get<int64_t>());
    if (parts.critic_optimizer != nullptr)
      parts.critic_optimizer->set_num_steps(blob.at("critic_optimizer_steps").get<int64_t>());
    // A fixed coefficient is the configuration's, which may have been changed for the resumed run.
    if (parts.algorithm->settings().kl_ctrl.type == KlCtrlType::kAdaptive)
      parts.algorithm->set_kl_coef(blob.at("kl_coef").get<double>());
    return {blob.at("step").get<int64_t>(), blob.at("policy_version").get<int64_t>(),
            blob.at("next_serial").get<int64_t>()};
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("the checkpoint's trainer counters cannot be read ({}). It was written by another version.",
                      error.what());
  }
}

}  // namespace temper
