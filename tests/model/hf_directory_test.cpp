#include "model/hf_directory.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "model/safetensors.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

const fs::path kModels = TEMPER_TEST_DATA;

class HfDirectory : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / format("temper_hf_directory_{}", ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A copy of a fixture, to be spoilt.
  std::string copy(const std::string& name) {
    fs::remove_all(folder_ / name);
    fs::copy(kModels / name, folder_ / name);
    return (folder_ / name).string();
  }
  static void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
    std::string text = read_file(path.string());
    const size_t place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from;
    write_file_atomically(path.string(), text.replace(place, from.size(), to));
  }
  // The model's tensors through `change`, written back.
  template <class Change>
  static void rewrite(const std::string& directory, Change change) {
    const std::string path = directory + "/model.safetensors";
    std::vector<SafetensorsItem> items;
    {
      const SafetensorsFile file(path);
      for (const SafetensorsEntry& entry : file.entries()) items.push_back({entry.name, file.read(entry.name)});
    }
    change(items);
    fs::remove(path);
    write_safetensors(path, items, at::kBFloat16);
  }
  template <class Kind>
  static std::string message_of(const std::string& directory) {
    try {
      load_model(directory);
    } catch (const Kind& error) {
      return error.what();
    }
    return "accepted, or another kind of error";
  }

  fs::path folder_;
};

TEST_F(HfDirectory, ModelsLoadAsFloatsWithTheDtypeOfTheirFile) {
  for (const auto& [name, dtype] : std::vector<std::pair<std::string, at::ScalarType>>{
           {"llama", at::kFloat}, {"llama_bias", at::kHalf}, {"qwen2", at::kBFloat16}, {"qwen3", at::kBFloat16}}) {
    const LoadedModel model = load_model((kModels / name).string());
    EXPECT_EQ(model.stored_dtype, dtype) << name;
    const SafetensorsFile file((kModels / name / "model.safetensors").string());
    EXPECT_EQ(file.entries().size(), model.parameters.specs().size()) << name;
    for (const ParameterSpec& spec : model.parameters.specs())
      EXPECT_TRUE(at::equal(model.parameters[spec.name], file.read(spec.name).to(at::kFloat)))
          << name << " " << spec.name;
  }
}

TEST_F(HfDirectory, ShardedModelsLoadWhole) {
  const LoadedModel model = load_model((kModels / "qwen2_yarn").string());
  const SafetensorsFile second((kModels / "qwen2_yarn" / "model-00002-of-00002.safetensors").string());
  EXPECT_TRUE(at::equal(model.parameters["lm_head.weight"], second.read("lm_head.weight").to(at::kFloat)));
  for (const ParameterSpec& spec : model.parameters.specs())
    EXPECT_GT(model.parameters[spec.name].abs().sum().item<float>(), 0.0f) << spec.name;
}

TEST_F(HfDirectory, ExportInTheLoadedDtypeHasTheSameBytes) {
  for (const char* name : {"llama", "llama_bias", "qwen2", "qwen3"}) {
    const LoadedModel model = load_model((kModels / name).string());
    write_model_files(folder_.string(), model.config, model.parameters, model.stored_dtype);
    EXPECT_EQ(read_file((folder_ / "model.safetensors").string()),
              read_file((kModels / name / "model.safetensors").string()))
        << name;
    const LoadedModel back = load_model(folder_.string());
    EXPECT_TRUE(at::equal(back.parameters.flat(), model.parameters.flat())) << name;
    EXPECT_EQ(back.config.eos_token_ids, model.config.eos_token_ids) << name;
    EXPECT_EQ(back.config.rope_scaling, model.config.rope_scaling) << name;
  }
}

TEST_F(HfDirectory, ExportInAnotherDtypeRounds) {
  const LoadedModel model = load_model((kModels / "llama").string());
  write_model_files(folder_.string(), model.config, model.parameters, at::kBFloat16);
  const LoadedModel back = load_model(folder_.string());
  EXPECT_EQ(back.stored_dtype, at::kBFloat16);
  EXPECT_TRUE(at::equal(back.parameters.flat(), model.parameters.flat().to(at::kBFloat16).to(at::kFloat)));
  EXPECT_THAT(read_file((folder_ / "config.json").string()), HasSubstr("\"dtype\": \"bfloat16\""));
}

TEST_F(HfDirectory, MissingTensorsAreNamedWithTheFix) {
  const std::string directory = copy("qwen3");
  rewrite(directory,
          [](auto& items) { std::erase_if(items, [](auto& item) { return item.name == "model.norm.weight"; }); });
  EXPECT_THAT(message_of<FormatError>(directory),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("model.norm.weight of shape [16] is missing"),
                    HasSubstr("pair")));

  const std::string untied = copy("qwen2");
  replace_in(fs::path(untied) / "config.json", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  EXPECT_THAT(message_of<FormatError>(untied),
              AllOf(HasSubstr("lm_head.weight"), HasSubstr("tie_word_embeddings to true")));
}

TEST_F(HfDirectory, MisshapenAndLeftOverTensorsAreNamedWithTheFix) {
  std::string directory = copy("qwen3");
  rewrite(directory, [](auto& items) {
    for (auto& item : items)
      if (item.name == "model.embed_tokens.weight") item.tensor = item.tensor.narrow(0, 0, 40);
  });
  EXPECT_THAT(message_of<FormatError>(directory), AllOf(HasSubstr("model.embed_tokens.weight has shape [40, 16]"),
                                                        HasSubstr("config.json makes it [48, 16]"), HasSubstr("Pair")));
  directory = copy("qwen3");
  replace_in(fs::path(directory) / "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  EXPECT_THAT(message_of<FormatError>(directory), AllOf(HasSubstr("tensor model.layers.1."), HasSubstr("has no place"),
                                                        HasSubstr("1 layers"), HasSubstr("config.json")));
}

TEST_F(HfDirectory, CopiesOfTheTiedEmbeddingAndOldBuffersAreLeftUnread) {
  const std::string directory = copy("qwen3");
  rewrite(directory, [](auto& items) {
    items.push_back({"lm_head.weight", at::ones({48, 16})});
    items.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", at::ones({4})});
  });
  EXPECT_TRUE(
      at::equal(load_model(directory).parameters.flat(), load_model((kModels / "qwen3").string()).parameters.flat()));
}

TEST_F(HfDirectory, IntegerWeightsAreRefused) {
  const std::string directory = copy("llama");
  const fs::path path = fs::path(directory) / "model.safetensors";
  std::string text = read_file(path.string());
  const size_t place = text.find("\"dtype\":\"F32\"");
  write_file_atomically(path.string(), text.replace(place, 13, "\"dtype\":\"I32\""));
  EXPECT_THAT(message_of<FormatError>(directory), AllOf(HasSubstr("has dtype I32"), HasSubstr("F32, BF16 and F16")));
}

TEST_F(HfDirectory, IncompleteFoldersSayWhatIsMissing) {
  std::string directory = copy("qwen2_yarn");
  fs::remove(fs::path(directory) / "model-00002-of-00002.safetensors");
  EXPECT_THAT(message_of<IoError>(directory),
              AllOf(HasSubstr("model-00002-of-00002.safetensors: is missing"), HasSubstr("index.json lists it")));

  directory = copy("qwen2_yarn");
  replace_in(fs::path(directory) / "model.safetensors.index.json", "\"model-00002-of-00002.safetensors\"",
             "\"../other\"");
  EXPECT_THAT(message_of<FormatError>(directory), HasSubstr("'../other', a file name in the same folder is needed"));

  directory = copy("qwen2_yarn");
  write_file_atomically(directory + "/model.safetensors.index.json", "{}");
  EXPECT_THAT(message_of<FormatError>(directory), HasSubstr("weight_map"));

  directory = copy("qwen3");
  fs::rename(directory + "/model.safetensors", directory + "/pytorch_model.bin");
  EXPECT_THAT(message_of<IoError>(directory),
              AllOf(HasSubstr("neither model.safetensors"), HasSubstr("save_pretrained")));
}

}  // namespace
}  // namespace temper
