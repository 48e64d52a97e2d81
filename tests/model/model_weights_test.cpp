// Weights that are read one parameter at a time are those of a model that is read whole.
#include "model/model_weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "model/hf_directory.h"
#include "model/initialize.h"

namespace temper {
namespace {

ModelConfig odd_sizes() {
  ModelInit init;
  init.family = "qwen2";
  init.hidden_size = 20;  // so that there are gaps in the flat buffer
  init.intermediate_size = 24;
  init.num_layers = 2;
  init.num_heads = 2;
  init.tie_word_embeddings = false;
  return new_model_config(init, {37, {}, {}, {}});
}

TEST(ModelWeights, HaveTheHashOfTheFlatBuffer) {
  const ModelWeights weights = random_weights(odd_sizes(), 7);
  const LoadedModel model = load(weights);
  int64_t in_parameters = 0;
  for (const ParameterSpec& spec : model.parameters.specs()) in_parameters += spec.num_elements();
  ASSERT_LT(in_parameters, model.parameters.flat().numel());
  const at::Tensor& flat = model.parameters.flat();
  EXPECT_EQ(hash_of(weights), xxh3_128_hex(flat.const_data_ptr(), flat.nbytes()));
  EXPECT_EQ(hash_of(weights_of(model)), hash_of(weights));
  EXPECT_NE(hash_of(random_weights(odd_sizes(), 8)), hash_of(weights));
}

TEST(ModelWeights, OfAnyTypeAreRoundedOnce) {
  const ModelWeights weights = random_weights(odd_sizes(), 7);
  EXPECT_TRUE(
      at::equal(load(weights, at::kBFloat16).parameters.flat(), load(weights).parameters.flat().to(at::kBFloat16)));
}

TEST(ModelWeights, SomeParametersAreReadWithoutTheOthers) {
  const ModelWeights weights = random_weights(odd_sizes(), 7);
  const LoadedModel model = load(weights);
  std::vector<std::string> asked;
  ModelWeights watched = weights;
  watched.read = [&](const std::string& name, const at::Tensor& out) {
    asked.push_back(name);
    weights.read(name, out);
  };
  const FlatParameters block(segment_layout(weights.config, 1));
  read_parameters(watched, block);
  ASSERT_EQ(asked.size(), block.specs().size());
  for (size_t i = 0; i < asked.size(); ++i) {
    EXPECT_EQ(asked[i], block.specs()[i].name);
    EXPECT_TRUE(at::equal(block[asked[i]], model.parameters[asked[i]])) << asked[i];
  }
}

class ModelFiles : public testing::Test {
 protected:
  ~ModelFiles() override { std::filesystem::remove_all(folder_); }
  std::string folder(const std::string& name) {
    std::filesystem::create_directories(folder_ / name);
    return (folder_ / name).string();
  }

 private:
  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / format("temper_model_weights_{}", ::getpid());
};

TEST_F(ModelFiles, AreTheSameHoweverTheParametersCome) {
  const LoadedModel model = load(random_weights(odd_sizes(), 7));
  const std::string whole = folder("whole"), parts = folder("parts");
  write_model_files(whole, model.config, model.parameters, at::kBFloat16);
  ModelFilesWriter writer(parts, model.config, at::kBFloat16);
  for (int64_t block = model.config.num_layers - 1; block >= -1; --block) {
    const FlatParameters some(segment_layout(model.config, block));
    read_parameters(weights_of(model), some);
    writer.write(some);
  }
  writer.finish();
  for (const char* name : {"/model.safetensors", "/config.json", "/generation_config.json"})
    EXPECT_EQ(read_file(parts + name), read_file(whole + name)) << name;
}

TEST_F(ModelFiles, AreNotFinishedWithoutAllParameters) {
  const LoadedModel model = load(random_weights(odd_sizes(), 7));
  ModelFilesWriter writer(folder("some"), model.config, at::kFloat);
  const FlatParameters ends(segment_layout(model.config, -1));
  writer.write(ends);
  EXPECT_THROW(writer.finish(), InvariantError);
}

}  // namespace
}  // namespace temper
