#include "model/rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/files.h"
#include "model/safetensors.h"
#include "tests/model/tensors.h"

namespace temper {
namespace {

using nlohmann::json;

// Angles at position 8191 agree to 1e-4 only if the frequencies agree to their last bits.
TEST(Rope, TablesEqualThoseOfTransformersForEveryKindOfScaling) {
  const json fixture = json::parse(read_file(TEMPER_TEST_DATA "/rope_cases.json"));
  const SafetensorsFile expected(TEMPER_TEST_DATA "/rope_expected.safetensors");
  const auto positions = fixture.at("positions").get<std::vector<int64_t>>();
  ASSERT_EQ(fixture.at("cases").size(), 6u);
  for (const auto& [name, keys] : fixture.at("cases").items()) {
    json text = {{"model_type", "llama"},  {"vocab_size", 8},        {"hidden_size", 16},
                 {"intermediate_size", 8}, {"num_hidden_layers", 1}, {"num_attention_heads", 2}};
    text.update(keys);
    const ModelConfig config = parse_model_config(text.dump(), name);
    const RopeFrequencies frequencies = rope_frequencies(config);
    const at::Tensor relative = frequencies.inverse / expected.read(name + ".inverse") - 1;
    EXPECT_LT(relative.abs().max().item<double>(), 1e-7) << name;
    EXPECT_NEAR(frequencies.attention_factor, expected.read(name + ".attention_factor").item<double>(), 1e-7) << name;

    const RopeTable table = rope_table(config, positions.back() + 1);
    const at::Tensor rows = at::tensor(positions, at::kLong);
    EXPECT_LT(largest_error(table.cos.index_select(0, rows), expected.read(name + ".cos")), 1e-5) << name;
    EXPECT_LT(largest_error(table.sin.index_select(0, rows), expected.read(name + ".sin")), 1e-5) << name;
  }
}

TEST(Rope, PositionZeroIsNotRotated) {
  const ModelConfig config = load_model_config(TEMPER_TEST_DATA "/qwen3");
  const RopeTable table = rope_table(config, 3);
  EXPECT_TRUE(at::equal(table.cos.select(0, 0), at::ones({4})));
  EXPECT_TRUE(at::equal(table.sin.select(0, 0), at::zeros({4})));
  EXPECT_NEAR(table.sin[2][0].item<double>(), std::sin(2.0), 1e-7);  // the first frequency is 1
}

}  // namespace
}  // namespace temper
