// temper generate: prompts in a JSONL file → completions with token ids and log-probabilities, one line a prompt, in
// order.
#include <ATen/Context.h>

#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/inference_model.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "data/prompt_dataset.h"
#include "model/device.h"
#include "observe/progress.h"
#include "rollout/engine.h"

namespace temper {
namespace {

CommandLine generate_command_line() {
  return CommandLine("generate",
                     "Writes completions of the prompts in a JSONL file, with token ids and log-probabilities.",
                     "--model DIR --prompts F.jsonl --out G.jsonl");
}

void declare_generate_options(CommandLine& line) {
  line.add_option("model", "DIR", "model directory (config.json, safetensors, tokenizer.json)");
  line.add_option("prompts", "FILE", "JSON lines with prompt, messages or prompt_token_ids");
  line.add_option("out", "FILE", "JSON lines with completions, in the order of the prompts");
  line.add_option("num-completions", "N", "completions a prompt", "1");
  line.add_option("max-new-tokens", "TOKENS", "length limit of a completion", "64");
  line.add_option("temperature", "T", "0 is greedy", "1.0");
  line.add_option("top-p", "P", "draw from the smallest set of tokens that has this probability; 1: all", "1");
  line.add_option("top-k", "K", "draw from the K likeliest tokens; 0: all", "0");
  line.add_option("min-p", "P", "leave out tokens less than P times as likely as the likeliest", "0");
  line.add_option("seed", "N", "of the draws", "0");
  declare_compute_type(line);
  line.add_option("stop", "STR", "a text that ends a completion; may be repeated");
  line.add_flag("raw", "no chat template: the prompt's text as it is");
  line.add_flag("deterministic", "the same bits whatever shares the batch, on any number of threads");
}

SamplingParams sampling_of(const CommandLine& line) {
  SamplingParams sampling;
  sampling.temperature = line.number("temperature");
  sampling.top_k = static_cast<int32_t>(line.integer("top-k", 0, INT32_MAX));
  sampling.top_p = line.number("top-p");
  sampling.min_p = line.number("min-p");
  sampling.max_new_tokens = static_cast<int32_t>(line.integer("max-new-tokens", 1, INT32_MAX));
  sampling.stop = line.texts("stop");
  sampling.seed = static_cast<uint64_t>(line.integer("seed"));
  check_sampling(sampling, "temper generate");
  return sampling;
}

std::string output_line(size_t index, const Prompt& prompt, const std::vector<Completion>& completions) {
  nlohmann::ordered_json out = {{"index", index}, {"prompt_token_ids", prompt.token_ids}};
  auto& list = out["completions"] = nlohmann::ordered_json::array();
  for (const Completion& completion : completions)
    list.push_back({{"text", completion.text},
                    {"token_ids", completion.token_ids},
                    {"logprobs", completion.logprobs},
                    {"finish_reason", completion.finish_reason == FinishReason::kStop ? "stop" : "length"}});
  return out.dump() + "\n";
}

}  // namespace

int run_generate(int argc, char** argv) {
  CommandLine line = generate_command_line();
  declare_generate_options(line);
  if (!line.parse(argc, argv)) return 0;
  const SamplingParams sampling = sampling_of(line);
  const auto num_completions = static_cast<int>(line.integer("num-completions", 1, 1 << 20));
  const ComputeType type = compute_type_of(line);
  const std::string prompts_path = line.text("prompts"), model_path = line.text("model");
  const std::string out_path = line.text("out");
  check_can_write(out_path);

  // On the CPU the engine's kernels compute in fixed tiles whatever the batch: the flag adds what keeps it so for
  // LibTorch's own operators.
  set_deterministic(line.flag("deterministic"));
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  const InferenceModel loaded = load_inference_model(model_path, type);
  const PromptEncoder encoder(loaded.tokenizer, line.flag("raw") || !loaded.chat ? nullptr : &*loaded.chat);
  const PromptDataset dataset = PromptDataset::load(prompts_path, {}, encoder);
  Engine engine(*loaded.model, loaded.tokenizer);
  for (const Prompt& prompt : dataset.prompts())
    engine.submit({.id = prompt.line,
                   .prompt_token_ids = prompt.token_ids,
                   .num_completions = num_completions,
                   .sampling = sampling,
                   .serial = prompt.serial,
                   .label = format("{}:{}", prompts_path, prompt.line + 1)});

  const Stopwatch clock;
  Progress progress;
  progress.begin_stage("generate", dataset.size());
  std::vector<std::string> lines(static_cast<size_t>(dataset.size()));
  MetricRecord record;
  record.stage = "generate";
  while (!engine.idle()) {
    for (const GenerationResult& result : engine.step()) {
      const auto index = static_cast<size_t>(result.id);
      lines[index] = output_line(index, dataset.at(result.id), result.completions);
      ++record.step;
    }
    record.set("perf/throughput", static_cast<double>(engine.stats().num_completion_tokens) / clock.seconds());
    progress.update(record);
  }
  progress.end_stage();
  write_file_atomically(out_path, join(lines, ""));
  const EngineStats stats = engine.stats();
  log_info("{} prompts, {} completions of {} tokens in all, {} s: {} tokens/s", dataset.size(),
           dataset.size() * num_completions, stats.num_completion_tokens, clock.seconds(),
           static_cast<int64_t>(static_cast<double>(stats.num_completion_tokens) / clock.seconds()));
  return 0;
}

}  // namespace temper
