// The rollout engine: prompts in, groups of completions out. Many sequences share each forward pass; they join and
// leave at every step (scheduler.h), their keys and values lie in a paged cache (kv_cache.h). step() is schedule, run,
// draw, retire. Results do not depend on what else is in the engine, on chunking or on preemption, up to the model's
// own rounding. One thread calls it; the model's weights may change between steps (tokens carry the version that drew
// them), and model and tokenizer outlive it.
#pragma once
#include <compare>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "data/tokenizer.h"
#include "model/transformer.h"
#include "rollout/kv_cache.h"
#include "rollout/sampler.h"
#include "rollout/scheduler.h"
#include "rollout/sequence.h"

namespace temper {

struct EngineOptions {
  int64_t max_num_seqs = 64;           // sequences in one forward pass
  int64_t kv_cache_memory_bytes = 0;   // bound; 0: what max_num_seqs full contexts need, at most half the free memory
  int64_t block_size = 16;             // tokens a cache block
  bool enable_prefix_sharing = true;   // a group computes and stores its prompt once, equal beginnings of prompts too
  bool enable_chunked_prefill = true;  // long prompts take several steps, beside decoding sequences
  int64_t max_tokens_per_step = 2048;  // tokens in one forward pass
};

struct EngineStats {
  int64_t num_steps = 0;
  int64_t num_prefill_tokens = 0;     // computed; shared prompts count once, preempted sequences again
  int64_t num_completion_tokens = 0;  // drawn
  int64_t num_preemptions = 0;
  int64_t num_prefix_tokens = 0;  // of prompts, taken from the cache of earlier ones
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t num_blocks = 0;
  int64_t num_used_blocks = 0;
  int64_t peak_used_blocks = 0;
  int64_t block_bytes = 0;
  double busy_s = 0;     // inside step()
  double occupancy = 0;  // mean sequences a step / max_num_seqs
};

// What one forward pass multiplied: benches replay it.
struct StepShape {
  int64_t num_tokens = 0;      // rows of every layer
  int64_t num_logit_rows = 0;  // rows of the head
  auto operator<=>(const StepShape&) const = default;
};

class Engine {
 public:
  // ConfigError, before anything is allocated, where the cache's bound is impossible.
  Engine(const Transformer& model, const Tokenizer& tokenizer, const EngineOptions& options = {});

  // ConfigError for a request that can never be served (empty or too long prompt, impossible settings, a cache too
  // small for it); the requests already in the engine are not touched.
  void submit(GenerationRequest request);

  // One forward pass; returns the groups that it completed. NumericsError when the model gives no finite logits: the
  // engine is of no use then.
  std::vector<GenerationResult> step();

  // What the last step() drew.
  const std::vector<StepToken>& step_tokens() const { return step_tokens_; }

  bool idle() const { return groups_.empty(); }

  // Takes a request out and hands back its completions as they are: unfinished ones are kAborted. Empty: no such
  // request.
  std::vector<Completion> cancel(int64_t id);

  // An interruption is: no step() for a while, new weights in the model, step() again. Running sequences keep their
  // keys and values, what they draw from then on carries the new version, and prompts that other versions computed are
  // not handed to new requests. Call this in between where the old keys and values are not to be kept: everything in
  // the cache is computed anew before it is used again.
  void recompute_cache();

  // Gives the cache's memory back to the system until the next step. REQUIRES: idle().
  void release();

  EngineStats stats() const;
  const StepShape& last_step() const { return last_step_; }

 private:
  at::Tensor run(const std::vector<ScheduledSequence>& plan);  // [T, hidden]
  std::vector<Sequence*> find_drawers(const std::vector<ScheduledSequence>& plan, std::vector<int64_t>& rows);
  std::vector<DrawnToken> draw(const at::Tensor& hidden, const std::vector<Sequence*>& drawers,
                               const std::vector<int64_t>& rows);
  void resume(Sequence& sequence, Completion begun) const;
  void append(Sequence& sequence, const DrawnToken& token);
  void end_turn(Sequence& sequence);
  static void finish(Sequence& sequence, FinishReason reason);
  int64_t room_for(const Sequence& sequence) const;
  std::vector<GenerationResult> retire(const std::vector<Sequence*>& drawers);
  void finish_text(Sequence& sequence) const;

  const Transformer& model_;
  const Tokenizer& tokenizer_;
  EngineOptions options_;
  std::vector<bool> ends_completion_;  // [vocab] the end-of-sequence tokens
  PagedKvCache cache_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::unordered_map<int64_t, std::unique_ptr<Group>> groups_;  // by request id
  std::vector<StepToken> step_tokens_;
  EngineStats stats_;
  StepShape last_step_;
  int64_t num_sequence_steps_ = 0;
  PolicyVersion prefix_version_ = 0;  // of the weights that computed the prefix cache
};

}  // namespace temper
