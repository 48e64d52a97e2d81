#include "trainer/train_state.h"

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace temper {
namespace {

void append(std::vector<TensorEntry>& entries, const std::string& group, const FlatParameters& tensors) {
  for (const ParameterSpec& spec : tensors.specs()) entries.push_back({group + spec.name, tensors[spec.name]});
}

}  // namespace

std::vector<TensorEntry> state_tensors(const Policy& policy, const AdamW& optimizer) {
  std::vector<TensorEntry> entries;
  append(entries, "model/", policy.parameters());
  append(entries, "optim/exp_avg/", optimizer.exp_avg());
  append(entries, "optim/exp_avg_sq/", optimizer.exp_avg_sq());
  return entries;
}

std::string save_counters(const TrainCounters& counters, const AdamW& optimizer, const Algorithm& algorithm) {
  const nlohmann::json blob = {{"step", counters.step},
                               {"policy_version", counters.policy_version},
                               {"next_serial", counters.next_serial},
                               {"optimizer_steps", optimizer.num_steps()},
                               {"kl_coef", algorithm.kl_coef()}};
  return blob.dump();
}

TrainCounters load_counters(const std::string& text, AdamW& optimizer, Algorithm& algorithm) {
  try {
    const nlohmann::json blob = nlohmann::json::parse(text);
    optimizer.set_num_steps(blob.at("optimizer_steps").get<int64_t>());
    // A fixed coefficient is the configuration's, which may have been changed for the resumed run.
    if (algorithm.settings().kl_ctrl.type == KlCtrlType::kAdaptive)
      algorithm.set_kl_coef(blob.at("kl_coef").get<double>());
    return {blob.at("step").get<int64_t>(), blob.at("policy_version").get<int64_t>(),
            blob.at("next_serial").get<int64_t>()};
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("the checkpoint's trainer counters cannot be read ({}). It was written by another version.",
                      error.what());
  }
}

}  // namespace temper
