#include "trainer/train_state.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "checkpoint/boxes.h"
#include "core/error.h"
#include "model/tensor_parallel.h"

namespace temper {
HostState::HostState(const TrainLoopParts& parts, bool to_be_saved) : ranks_(parts.ranks) {
  const auto append_learner = [&](const std::string& prefix, const std::string& optim, const TrainerModel& model,
                                  const AdamW& optimizer) {
    append(prefix, model, model.own_parameters(), to_be_saved);
    append(optim + "exp_avg/", model, optimizer.exp_avg(), to_be_saved);
    append(optim + "exp_avg_sq/", model, optimizer.exp_avg_sq(), to_be_saved);
  };
  append_learner("model/", "optim/", *parts.policy, *parts.optimizer);
  if (parts.critic_optimizer != nullptr)
    append_learner("critic/", "critic_optim/", *parts.critic, *parts.critic_optimizer);
}

void HostState::append(const std::string& group, const TrainerModel& model, const std::vector<FlatPart>& parts,
                       bool to_be_saved) {
  const std::vector<ParameterSpec>& own = model.layout();
  const std::vector<ParameterSpec> whole = parameter_layout(model.config());
  TEMPER_CHECK(own.size() == whole.size(), "{} parameters here, {} in the whole model", own.size(), whole.size());
  const Communicator* tensor_group = ranks_.tensor_group();
  const TensorPart share =
      tensor_group == nullptr ? TensorPart() : TensorPart{tensor_group->rank(), tensor_group->size()};

  std::vector<FlatPart> here = parts;
  if (to_be_saved) {
    here.clear();
    const ShardPlan writers = model.shard_plan(Shard::kOptimizer, ranks_);
    for (const FlatRange& range : ranks_.in_first_replica() ? writers.owned() : std::vector<FlatRange>())
      for (FlatPart& piece : cut(parts, range)) here.push_back(std::move(piece));
  }
  if (!to_be_saved)
    for (FlatPart& part : here) part.elements = room_on_host(part.elements);

  for (size_t i = 0; i < own.size(); ++i) {
    const ParameterSpec& spec = own[i];
    const auto split = split_dimension(spec.name);
    const size_t before = entries_.size();
    const bool others = to_be_saved && !split && share.rank > 0;  // the first of the group writes it
    const FlatRange range{spec.offset, others ? spec.offset : spec.offset + spec.num_elements()};
    for (const FlatPart& piece : cut(here, range)) {
      int64_t at = 0;
      for (Box& box : boxes_of_range(spec.shape, piece.begin - spec.offset, piece.end() - spec.offset)) {
        const int64_t count = num_elements(box.size);
        if (split) box.start[static_cast<size_t>(*split)] += share.begin(whole[i].shape[static_cast<size_t>(*split)]);
        entries_.push_back(
            {group + spec.name, piece.elements.narrow(0, at, count).view(box.size), whole[i].shape, box.start});
        at += count;
      }
    }
    if (entries_.size() == before)
      entries_.push_back({group + spec.name, at::empty({0}, at::kFloat), whole[i].shape, {}});
  }
}

at::Tensor HostState::room_on_host(const at::Tensor& elements) {
  if (elements.is_cpu()) return elements;
  copies_.push_back({elements, at::empty(elements.sizes(), elements.options().device(at::kCPU))});
  return copies_.back().host;
}

void HostState::put_back() const {
  for (const Copy& copy : copies_) at::Tensor(copy.own).copy_(copy.host);
}

Mesh checkpoint_mesh(const Ranks& ranks) {
  const Communicator* tensor_group = ranks.tensor_group();
  return {ranks.num_replicas(), ranks.shard_group().size(), tensor_group == nullptr ? 1 : tensor_group->size()};
}

std::string save_counters(const TrainCounters& counters, const TrainLoopParts& parts) {
  nlohmann::json blob = {{"step", counters.step},
                         {"policy_version", counters.policy_version},
                         {"next_serial", counters.next_serial},
                         {"optimizer_steps", parts.optimizer->num_steps()},
                         {"kl_coef", parts.algorithm->kl_coef()}};
  if (parts.critic_optimizer != nullptr) blob["critic_optimizer_steps"] = parts.critic_optimizer->num_steps();
  if (!counters.unended.empty()) blob["unended"] = counters.unended;
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
    TrainCounters counters{blob.at("step").get<int64_t>(), blob.at("policy_version").get<int64_t>(),
                           blob.at("next_serial").get<int64_t>()};
    if (blob.contains("unended")) counters.unended = blob["unended"].get<std::vector<int64_t>>();
    return counters;
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("the checkpoint's trainer counters cannot be read ({}). It was written by another version.",
                      error.what());
  }
}

}  // namespace temper
