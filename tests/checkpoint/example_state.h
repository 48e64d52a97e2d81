// A small but complete state, different for each step, and the comparison with what was loaded.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace temper {

// f32 values that depend on step and index, with the awkward ones in front.
inline at::Tensor example_tensor(at::IntArrayRef shape, at::ScalarType dtype, int64_t step) {
  const int64_t count = c10::multiply_integers(shape);
  at::Tensor values = (at::arange(count, at::kDouble) * 0.37 + static_cast<double>(step)).sin() * 90;
  if (at::isFloatingType(dtype) && count >= 4) {
    values[0] = std::numeric_limits<double>::quiet_NaN();
    values[1] = -0.0;
    values[2] = std::numeric_limits<double>::infinity();
    values[3] = 1e-42;  // a denormal in f32
  }
  if (dtype == at::kBool) return values.gt(0).view(shape).contiguous();
  if (dtype == at::kByte) values = values.abs();
  return values.to(dtype).view(shape).contiguous();
}

inline CheckpointState example_state(int64_t step) {
  CheckpointState state;
  state.header.run = "demo";
  state.header.stage = "grpo";
  state.header.step = step;
  state.header.policy_version = step + 100;
  state.header.epoch = 2;
  state.header.config_toml = "[run]\nname = \"demo\"\n";
  state.header.model_json = R"({"hidden_size": 3})";
  state.header.data_hash = "0123456789abcdef0123456789abcdef";
  state.header.blobs["rng"] = R"({"seed": 1234567890123456789})";
  state.header.blobs["unconsumed_groups"] = std::string("\x00\xff\xfe raw \n bytes", 15);
  state.header.blobs["cursor"] = "";
  state.tensors = {{"model/embed.weight", example_tensor({5, 3}, at::kFloat, step)},
                   {"model/norm.weight", example_tensor({3}, at::kFloat, step + 1)},
                   {"optim/exp_avg/embed.weight", example_tensor({5, 3}, at::kFloat, step + 2)},
                   {"optim/step", example_tensor({}, at::kLong, step + 3)}};
  return state;
}

// Tensors of the same names, types and shapes, filled with other values.
inline std::vector<TensorEntry> blank_copy(const std::vector<TensorEntry>& tensors) {
  std::vector<TensorEntry> blank;
  for (const TensorEntry& entry : tensors) blank.push_back({entry.name, at::full_like(entry.tensor, 1)});
  return blank;
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous() &&
         // an empty tensor has no address, which memcmp must not be given
         (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

inline void expect_same_header(const CheckpointHeader& a, const CheckpointHeader& b) {
  EXPECT_EQ(a.run, b.run);
  EXPECT_EQ(a.stage, b.stage);
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.policy_version, b.policy_version);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.config_toml, b.config_toml);
  EXPECT_EQ(a.model_json, b.model_json);
  EXPECT_EQ(a.data_hash, b.data_hash);
  EXPECT_EQ(a.blobs, b.blobs);
}

inline void expect_loads_as(FileSystem& files, const std::string& path, const CheckpointState& state) {
  const auto tensors = blank_copy(state.tensors);
  const LoadedCheckpoint loaded = load_checkpoint(files, path, [&](const CheckpointHeader&) { return tensors; });
  expect_same_header(loaded.header, state.header);
  for (size_t i = 0; i < tensors.size(); ++i)
    EXPECT_TRUE(same_bits(tensors[i].tensor, state.tensors[i].tensor)) << tensors[i].name;
}

// The text of the error that `action` throws; a failure if it throws none of kind E.
template <class E, class F>
std::string error_text(F&& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

}  // namespace temper
