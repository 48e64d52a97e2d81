// temper bench rollout: how fast the engine generates, beside the time of its matrix products alone.
#include <ATen/Context.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "apps/bench.h"
#include "apps/bench_model.h"
#include "apps/gemm_limit.h"
#include "core/clock.h"
#include "core/process.h"
#include "core/rng.h"
#include "core/system_memory.h"
#include "model/device.h"
#include "rollout/engine.h"

namespace temper {
namespace {

struct Workload {
  int64_t num_prompts, num_generations, prompt_tokens, max_new_tokens;
};

struct Limits {
  double ttft_ms, tpot_ms;
};

// Prompt i, as in bench/rollout_peer.py: token j is the j-th draw of SplitMix64(i).
std::vector<int32_t> make_prompt(int64_t index, int64_t length, int64_t vocab) {
  SplitMix64 random(static_cast<uint64_t>(index));
  std::vector<int32_t> ids;
  for (int64_t j = 0; j < length; ++j) ids.push_back(static_cast<int32_t>(random.in_range(0, vocab - 1)));
  return ids;
}

// Prompts that the engine has not seen: its prefix cache would keep them from run to run. first_prompt goes on.
void submit(Engine& engine, const Workload& work, int64_t vocab, int64_t& first_prompt) {
  for (const int64_t end = first_prompt + work.num_prompts; first_prompt < end; ++first_prompt) {
    GenerationRequest request{.id = first_prompt,
                              .prompt_token_ids = make_prompt(first_prompt, work.prompt_tokens, vocab),
                              .num_completions = static_cast<int>(work.num_generations),
                              .sampling = {},
                              .serial = first_prompt};
    request.sampling.max_new_tokens = static_cast<int32_t>(work.max_new_tokens);
    request.sampling.ignore_eos = true;
    engine.submit(std::move(request));
  }
}

struct Run {
  double seconds = 0;  // from submission to the last token
  double cpu_s = 0;    // processor time of all threads: on a busy machine the truer figure, with one thread
  double num_tokens = 0;
  std::vector<GenerationResult> results;
  StepCounts steps;
  double num_decode_tokens = 0, decode_s = 0;  // of the steps in which every sequence decodes and nothing else happens
};

Run generate(Engine& engine, const Workload& work, int64_t vocab, int64_t& first_prompt) {
  Run run;
  const Stopwatch clock;
  const std::clock_t cpu_start = std::clock();
  submit(engine, work, vocab, first_prompt);
  const int64_t num_sequences = work.num_prompts * work.num_generations;
  while (!engine.idle()) {
    const Stopwatch step;
    for (GenerationResult& result : engine.step()) run.results.push_back(std::move(result));
    const StepShape& shape = engine.last_step();
    ++run.steps[shape];
    if (shape.num_tokens != num_sequences || shape.num_logit_rows != num_sequences) continue;
    run.num_decode_tokens += static_cast<double>(num_sequences);
    run.decode_s += step.seconds();
  }
  run.seconds = clock.seconds();
  run.cpu_s = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  run.num_tokens = static_cast<double>(work.num_prompts * work.num_generations * work.max_new_tokens);
  return run;
}

// Prompt tokens a second: every prompt with one token behind it.
double prefill_rate(Engine& engine, Workload work, int64_t vocab, int64_t& first_prompt) {
  work.num_generations = work.max_new_tokens = 1;
  return static_cast<double>(work.num_prompts * work.prompt_tokens) /
         generate(engine, work, vocab, first_prompt).seconds;
}

BenchFields latencies(const Run& run, const Limits& limits) {
  std::vector<double> first, each;
  double num_good = 0;
  for (const GenerationResult& result : run.results) {
    first.push_back(result.time_to_first_token_s * 1e3);
    for (const double seconds : result.time_per_output_token_s) {
      each.push_back(seconds * 1e3);
      num_good += first.back() <= limits.ttft_ms && each.back() <= limits.tpot_ms;
    }
  }
  return {{"ttft_ms_p50", quantile(first, 0.5)},
          {"ttft_ms_p99", quantile(first, 0.99)},
          {"tpot_ms_p50", quantile(each, 0.5)},
          {"tpot_ms_p99", quantile(each, 0.99)},
          {"goodput", num_good / static_cast<double>(each.size())}};
}

// Mean sequences a step by the most that a step takes.
double occupancy(const Run& run, int64_t max_num_seqs) {
  double sequences = 0, steps = 0;
  for (const auto& [shape, count] : run.steps) {
    sequences += static_cast<double>(std::min(shape.num_tokens, max_num_seqs) * count);
    steps += static_cast<double>(count);
  }
  return sequences / steps / static_cast<double>(max_num_seqs);
}

// Seconds since the kernel made this process.
double process_age_s() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 -
         static_cast<double>(process_start_ticks(getpid())) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double first_token_age_s(Engine& engine, const Workload& work, int64_t vocab) {
  int64_t first_prompt = 0;
  submit(engine, work, vocab, first_prompt);
  while (engine.stats().num_completion_tokens == 0) engine.step();
  return process_age_s();
}

double megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1048576; }

// The embedding in the compute dtype, and the matrices that are multiplied with, of which a tied head is one more.
int64_t weight_bytes(const Transformer& model) {
  const ModelConfig& config = model.config();
  const auto element = static_cast<int64_t>(c10::elementSize(model.compute_dtype()));
  const int64_t embedding = config.vocab_size * config.hidden_size;
  const int64_t matrices = num_parameters(config) - (config.tie_word_embeddings ? 0 : embedding);
  return embedding * element + matrices * (model.weight_format() == WeightFormat::kInt8 ? 1 : element);
}

EngineOptions options_of(const CommandLine& line, const Workload& work) {
  EngineOptions options;
  options.max_num_seqs =
      line.given("max-num-seqs") ? line.integer("max-num-seqs", 1, 1 << 20) : work.num_prompts * work.num_generations;
  options.kv_cache_memory_bytes = line.integer("kv-cache-mb", 0, 1 << 24) << 20;
  return options;
}

CommandLine bench_rollout_command_line() {
  return CommandLine("bench rollout", "Measures generation: completions of random prompts, temperature 1.",
                     "--model DIR | --preset 135m");
}

void declare_bench_rollout_options(CommandLine& line) {
  declare_bench_model(line);
  line.add_option("num-prompts", "N", "groups", "8");
  line.add_option("num-generations", "N", "completions of each prompt", "8");
  line.add_option("prompt-tokens", "TOKENS", "length of each prompt", "80");
  line.add_option("max-new-tokens", "TOKENS", "length of each completion; stop tokens are ignored", "128");
  line.add_option("max-num-seqs", "N", "sequences in one forward pass; default: all");
  line.add_option("kv-cache-mb", "MIB", "bound of the KV cache; 0: what all sequences need at most", "0");
  line.add_option("seconds", "S", "repeat until this long is measured; the median repeat is the summary", "10");
  line.add_option("ttft-ms", "MS", "goodput: latest first token", "1000");
  line.add_option("tpot-ms", "MS", "goodput: slowest mean time of a further token", "100");
  line.add_flag("deterministic", "under run.deterministic; also prints its time over that without");
  line.add_flag("cold", "only first_token_s: from the begin of the process to the first token, model loading included");
}

}  // namespace

int run_bench_rollout(int argc, char** argv) {
  CommandLine line = bench_rollout_command_line();
  declare_bench_rollout_options(line);
  if (!line.parse(argc, argv)) return 0;
  const Workload work{.num_prompts = line.integer("num-prompts", 1, 1 << 20),
                      .num_generations = line.integer("num-generations", 1, 1 << 20),
                      .prompt_tokens = line.integer("prompt-tokens", 1, 1 << 20),
                      .max_new_tokens = line.integer("max-new-tokens", 1, 1 << 20)};
  const Limits limits{line.number("ttft-ms"), line.number("tpot-ms")};
  const double seconds = line.number("seconds");
  const EngineOptions options = options_of(line, work);

  const InferenceModel loaded = load_bench_model(line);
  const Transformer& model = *loaded.model;
  const int64_t vocab = model.config().vocab_size;
  Engine engine(model, loaded.tokenizer, options);
  const BenchReport report(argc, argv, model.device());
  set_deterministic(line.flag("deterministic"));
  if (line.flag("cold")) {
    report.print({{"first_token_s", first_token_age_s(engine, work, vocab)}});
    return 0;
  }

  int64_t first_prompt = 0;                                // of the next run
  generate(engine, work, vocab, first_prompt);             // compiles kernels, touches memory
  const double peak_rss_mb = megabytes(peak_rss_bytes());  // before the limit's own weights
  const GemmLimit limit(model.config(), model.compute_dtype(), model.weight_format(), model.device());
  std::vector<std::pair<double, BenchFields>> repeats;  // by tokens/s
  double measured = 0;
  while (repeats.empty() || measured < seconds) {
    const Run run = generate(engine, work, vocab, first_prompt);
    measured += run.seconds;
    const double rate = run.num_tokens / run.seconds;
    BenchFields fields = {{"tokens_per_s", rate},
                          {"prefill_tokens_per_s", prefill_rate(engine, work, vocab, first_prompt)}};
    if (run.decode_s > 0) fields.emplace_back("decode_tokens_per_s", run.num_decode_tokens / run.decode_s);
    for (const auto& field : latencies(run, limits)) fields.push_back(field);
    const EngineStats stats = engine.stats();
    fields.emplace_back("cpu_s", run.cpu_s);
    fields.emplace_back("occupancy", occupancy(run, options.max_num_seqs));
    fields.emplace_back("kv_cache_mb", megabytes(stats.peak_used_blocks * stats.block_bytes));
    fields.emplace_back("peak_rss_mb", peak_rss_mb);
    const double planned_mb = megabytes(weight_bytes(model) + stats.num_blocks * stats.block_bytes);
    fields.emplace_back("memory_of_plan", (peak_rss_mb - megabytes(loaded.peak_before_weights_bytes)) / planned_mb);
    fields.emplace_back("gemm_limit_share", limit.seconds(run.steps) / run.seconds);
    if (line.flag("deterministic")) {
      set_deterministic(false);
      fields.emplace_back("deterministic_cost", run.seconds / generate(engine, work, vocab, first_prompt).seconds);
      set_deterministic(true);
    }
    report.print(fields);
    repeats.emplace_back(rate, std::move(fields));
  }
  std::sort(repeats.begin(), repeats.end());
  BenchFields summary = repeats[(repeats.size() - 1) / 2].second;
  summary.emplace_back("repeats", repeats.size());
  report.print(summary);
  return 0;
}

}  // namespace temper
