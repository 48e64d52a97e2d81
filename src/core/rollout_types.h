// The nouns of the data path: prompt → group of completions. They carry facts; advantages and losses are computed from
// them in algos. Log-probabilities are natural logarithms.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace temper {

// Counts the training steps taken: the weights after step n are version n.
using PolicyVersion = int64_t;

struct Prompt {
  int64_t serial = 0;              // running number in the shuffled order (training) or line index (generate, eval)
  int64_t line = 0;                // index in the data set
  std::vector<int32_t> token_ids;  // as the model sees it, chat template applied
  std::string text;                // the user's words, for logs and reports
  std::string answer;              // ground truth that rewards compare with; may be empty
  std::map<std::string, std::string> fields;  // further fields of the JSONL line, as JSON text
};

struct SamplingParams {
  double temperature = 1.0;  // 0 is greedy
  int32_t top_k = 0;         // 0 = all
  double top_p = 1.0;
  double min_p = 0.0;
  int32_t max_new_tokens = 64;
  std::vector<std::string> stop = {};  // texts; the completion's text ends before the first of them
  bool ignore_eos = false;             // benches: generate max_new_tokens whatever comes
  uint64_t seed = 0;
};

enum class FinishReason : uint8_t {
  kStop,     // an end-of-sequence token or a stop string
  kLength,   // max_new_tokens reached, or the context is full
  kAborted,  // cancelled; the tokens so far are valid
};

struct Completion {
  std::vector<int32_t> token_ids;              // [T], with the stop token if one ended it
  std::vector<float> logprobs;                 // [T] at temperature 1, untruncated
  std::vector<float> behavior_logprobs;        // [T] at the sampling temperature, before top-k/top-p/min-p
  std::vector<PolicyVersion> policy_versions;  // [T] the weights that drew each token
  std::vector<uint8_t> mask;                   // [T] 1: drawn by the policy, counts in the loss
  std::string text;                            // without special tokens and stop strings
  FinishReason finish_reason = FinishReason::kStop;
  std::vector<double> rewards;  // [K] one a reward function; empty before scoring
  std::string error;            // why scoring failed; empty if it did not. Failed is never reward 0
};

enum class RolloutPurpose : uint8_t {
  kTrain,
  kEval,
  kBaseline,  // the greedy completion that remax compares with
};

// All completions of one prompt: what advantages compare. For losses on pairs: chosen and rejected.
struct RolloutGroup {
  Prompt prompt;
  RolloutPurpose purpose = RolloutPurpose::kTrain;
  std::vector<Completion> completions;
  std::optional<double> baseline_reward;  // of the greedy completion, where an estimator needs it
  double margin = 0;                      // pairs: by how much chosen should be better
};

}  // namespace temper
