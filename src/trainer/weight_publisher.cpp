#include "trainer/weight_publisher.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "model/tensor_parallel.h"

namespace temper {

WeightPublisher::WeightPublisher(WeightServer& server, const ModelConfig& model, at::ScalarType dtype,
                                 const Ranks& ranks)
    : server_(server), model_(model), dtype_(dtype), rank_(ranks.rank()), num_ranks_(ranks.size()) {
  TEMPER_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "weights are sent as f32 or bf16");
  model_.value_head = false;
}

void WeightPublisher::copy(int64_t block, const FlatParameters& masters) {
  const at::NoGradGuard no_grad;
  for (const ParameterSpec& spec : segment_layout(model_, block)) {
    WeightPart part{.name = spec.name,
                    .dtype = dtype_ == at::kBFloat16 ? WeightDtype::kBf16 : WeightDtype::kF32,
                    .shape = spec.shape,
                    .begin = spec.num_elements() * rank_ / num_ranks_,
                    .end = spec.num_elements() * (rank_ + 1) / num_ranks_,
                    .bytes = {}};
    if (part.begin == part.end) continue;
    // A copy even where nothing is converted: sharded masters are let go after this call.
    copies_.push_back(at::empty({part.end - part.begin}, dtype_));
    copies_.back().copy_(masters[spec.name].flatten().slice(0, part.begin, part.end));
    part.bytes = {static_cast<const char*>(copies_.back().const_data_ptr()), copies_.back().nbytes()};
    parts_.push_back(std::move(part));
  }
}

void WeightPublisher::publish(int64_t epoch, PolicyVersion version) {
  server_.publish(epoch, version, parts_);
  parts_.clear();
  copies_.clear();
}

}  // namespace temper
