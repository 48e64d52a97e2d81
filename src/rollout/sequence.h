// The engine's nouns: a request, its group of sequences, and what comes out. A sequence is one completion on its way:
// prompt and drawn tokens, the blocks that hold its keys and values, and how far these are computed. Values without
// behaviour worth mentioning; engine and scheduler share them by pointer, one thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/rollout_types.h"
#include "rollout/environment.h"
#include "rollout/stop_strings.h"

namespace temper {

struct GenerationRequest {
  int64_t id = 0;                         // the caller's; unique among the requests in the engine
  std::vector<int32_t> prompt_token_ids;  // [P]
  int num_completions = 1;
  SamplingParams sampling;
  int64_t serial = 0;      // draws depend on (sampling.seed, serial, completion, position) alone
  std::string label = {};  // what messages call it; empty: "request ID"
  // One environment a completion, reset; null or not given: completions of one turn.
  std::function<std::unique_ptr<Environment>()> environment = {};
  // Empty, or one each of what an engine handed back: those that are kAborted go on where they ended, the others stay.
  std::vector<Completion> begun = {};
};

struct GenerationResult {
  int64_t id = 0;
  std::vector<Completion> completions = {};          // [num_completions], all fields but rewards
  double time_to_first_token_s = 0;                  // from submit() to the first token of the group
  std::vector<double> time_per_output_token_s = {};  // [num_completions] mean after the first token; 0 with one token
  double seconds = 0;                                // from submit() to the last token of the group
};

// A token that the last step drew (an environment's are not drawn), for those who show completions while they grow.
struct StepToken {
  int64_t id = 0;          // the request's
  int32_t completion = 0;  // index in the group
  int32_t token_id = 0;
  float logprob = 0;                                 // at temperature 1
  bool is_text = true;                               // false: a special token, or the one that ended the completion
  bool finished = false;                             // the completion's last
  FinishReason finish_reason = FinishReason::kStop;  // once finished
};

struct Group;

struct Sequence {
  Group* group = nullptr;
  int32_t index = 0;               // the completion's in the group
  int64_t order = 0;               // of arrival in the engine
  std::vector<int32_t> token_ids;  // [P + T] prompt, then what was drawn
  int64_t num_computed = 0;        // of token_ids: keys and values are in the cache
  std::vector<int32_t> blocks;     // block table, from position 0
  int64_t prefix_epoch = 0;        // of the prefix cache when the sequence joined
  Completion completion;
  StopMatcher stop;
  std::unique_ptr<Environment> environment;
  StopMatcher turn_end;
  size_t turn_begin = 0;     // of the completion's tokens: the policy's current turn
  double first_token_s = 0;  // on the group's clock
  double last_token_s = 0;
  bool finished = false;

  int64_t length() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_uncomputed() const { return length() - num_computed; }
};

struct Group {
  GenerationRequest request;
  std::vector<std::unique_ptr<Sequence>> sequences;  // [num_completions]
  int num_unfinished = 0;
  int num_waiting = 0;  // of the sequences: not running, not finished
  // Computes the prompt for all: the others wait to fork from it. Null when nobody does.
  Sequence* leader = nullptr;
  Stopwatch clock;  // since submit()

  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt_token_ids.size()); }
};

}  // namespace temper
