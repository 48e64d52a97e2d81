// temper serve: the OpenAI chat and completions API over the rollout engine. This thread owns the engine; the HTTP
// server's threads hand requests to it.
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/inference_model.h"
#include "apps/serve_engine.h"
#include "apps/serve_http.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "data/prompt_encoder.h"
#include "rollout/engine.h"

namespace temper {
namespace {

void declare_serve_options(CommandLine& line) {
  line.add_option("model", "DIR", "model directory (config.json, safetensors, tokenizer.json)");
  line.add_option("served-model-name", "NAME", "what clients call it; left out: the directory's name");
  line.add_option("host", "ADDRESS", "where to listen; 0.0.0.0: on every interface", "127.0.0.1");
  line.add_option("port", "N", "0: any that is free (the log says which)", "8000");
  line.add_option("api-key", "KEY", "clients must send Authorization: Bearer KEY");
  declare_compute_type(line);
  line.add_option("max-num-seqs", "N", "completions that share a step", "64");
  line.add_option("max-queued-seqs", "N", "completions that may wait for a place; beyond: 429", "256");
  line.add_option(
      "kv-cache-memory", "MIB",
      "bound of the cache of keys and values; 0: what max-num-seqs full contexts need, at most half the free "
      "memory",
      "0");
  line.add_option("max-tokens-per-step", "TOKENS", "of prompts beside decoding; fewer: steadier streams", "512");
  line.add_option("drain-timeout-s", "SECONDS", "after Ctrl-C, for the answers under way", "30");
}

// The HTTP library waits with select(), which knows file descriptors below 1,024 only.
void bound_file_descriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur <= FD_SETSIZE) return;
  limit.rlim_cur = FD_SETSIZE;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string name_of_directory(const std::string& path) {
  return std::filesystem::path(std::filesystem::absolute(path).lexically_normal() / "")
      .parent_path()
      .filename()
      .string();
}

void say_what_is_served(const HttpOptions& http, int port, const ServedModel& model, const EngineStats& stats,
                        const EngineOptions& options, int64_t context) {
  if (model.context < context)
    log_warning(
        "the cache holds {} tokens, less than the model's context of {}: longer requests are refused. Raise "
        "--kv-cache-memory.",
        model.context, context);
  if (http.host != "127.0.0.1" && http.host != "localhost" && http.host != "::1" && http.api_key.empty())
    log_warning("whoever reaches {}:{} can use this server. Give --api-key, or leave --host out.", http.host, port);
  if (model.chat == nullptr) log_warning("{} has no chat template: /v1/completions alone works.", model.name);
  log_info("{}: context {} tokens, KV cache {} MiB, {} completions at a time and {} waiting", model.name, model.context,
           stats.num_blocks * stats.block_bytes >> 20, options.max_num_seqs,
           model.max_completions - options.max_num_seqs);
  const bool ipv6 = http.host.find(':') != std::string::npos;
  log_info("listening on http://{}{}{}:{}/v1 (Ctrl-C stops)", ipv6 ? "[" : "", http.host, ipv6 ? "]" : "", port);
}

}  // namespace

int run_serve(int argc, char** argv) {
  CommandLine line("serve", "Answers OpenAI's chat and completions API with a model.", "--model DIR");
  declare_serve_options(line);
  if (!line.parse(argc, argv)) return 0;
  const std::string directory = line.text("model");
  const ComputeType type = compute_type_of(line);
  EngineOptions options;
  options.max_num_seqs = line.integer("max-num-seqs", 1, 4096);
  options.kv_cache_memory_bytes = line.integer("kv-cache-memory", 0, int64_t{1} << 40) << 20;
  options.max_tokens_per_step = line.integer("max-tokens-per-step", 1, 1 << 20);
  const int64_t max_completions = options.max_num_seqs + line.integer("max-queued-seqs", 0, 1 << 16);
  const double drain_timeout_s = line.number("drain-timeout-s");
  // A thread for each request that is in the server, and some for those that are turned away or ask how it is.
  const HttpOptions http{.host = line.text("host"),
                         .port = static_cast<int>(line.integer("port", 0, 65535)),
                         .api_key = line.given("api-key") ? line.text("api-key") : "",
                         .max_connections = std::min<int64_t>(max_completions + 64, 900)};
  bound_file_descriptors();
  HttpServer server(http);

  const InferenceModel loaded = load_inference_model(directory, type);
  Engine engine(*loaded.model, loaded.tokenizer, options);
  const EngineStats stats = engine.stats();
  const PromptEncoder raw(loaded.tokenizer, nullptr), chat(loaded.tokenizer, loaded.chat ? &*loaded.chat : nullptr);
  const int64_t context = loaded.model->config().max_position_embeddings;
  ServedModel model;
  model.name = line.given("served-model-name") ? line.text("served-model-name") : name_of_directory(directory);
  model.raw = &raw;
  model.chat = loaded.chat ? &chat : nullptr;
  model.context = std::min(context, stats.num_blocks * options.block_size);
  model.max_completions = max_completions;
  ServeEngine served(engine, max_completions);

  // Before the engine goes, whichever way this ends.
  const struct Stopper {
    HttpServer& server;
    ~Stopper() { server.stop(); }
  } stopper{server};
  install_stop_handlers();
  server.start(served, model, loaded.tokenizer);
  say_what_is_served(http, server.port(), model, stats, options, context);
  served.run(stop_requested, drain_timeout_s);
  server.stop();
  const ServeStats total = served.stats();
  log_info("stopped: {} requests answered, {} cancelled, {} completion tokens",
           total.num_accepted - total.num_cancelled, total.num_cancelled, total.engine.num_completion_tokens);
  return 0;
}

}  // namespace temper
