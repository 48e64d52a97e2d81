// The answers of the API: OpenAI's JSON objects for a whole reply, for the chunks of a stream and for errors. Pure but
// for the progress that a stream keeps of each completion. One object serves one request; one thread at a time.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/serve_request.h"
#include "data/tokenizer.h"
#include "rollout/sequence.h"
#include "rollout/text_stream.h"

namespace temper {

// {"error": {…}}
std::string error_body(int status, const std::string& message, const std::string& code = "",
                       const std::string& param = "");

class ApiReply {
 public:
  // `id` without its prefix; `created`: seconds since 1970. The tokenizer outlives it.
  ApiReply(const ApiRequest& request, const Tokenizer& tokenizer, std::string model_name, const std::string& id,
           int64_t created);

  // [P] results, by prompt.
  std::string whole(const std::vector<GenerationResult>& results);

  // A stream as server-sent events: opening(), chunks() of each step's tokens (StepToken::id is the prompt's index),
  // closing() after all is finished.
  std::string opening() const;
  std::string chunks(const std::vector<StepToken>& tokens);
  std::string closing() const;

  const std::string& id() const { return id_; }
  bool finished() const { return num_unfinished_ == 0; }
  int64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  int64_t num_completion_tokens() const { return num_completion_tokens_; }

 private:
  struct Choice {  // a completion of a stream
    TextStream text;
    std::string pending_text = {};
    std::vector<int32_t> token_ids = {};  // whose log-probabilities are not sent yet
    std::vector<float> logprobs = {};
    int64_t num_characters = 0;  // of all tokens before these
  };

  nlohmann::ordered_json envelope(bool chunk) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json logprobs_of(const std::vector<int32_t>& token_ids, const std::vector<float>& logprobs,
                                     int64_t& num_characters) const;
  std::string event(nlohmann::ordered_json choice) const;
  std::string flush(size_t index, const char* finish_reason);
  bool chat() const { return kind_ == ApiKind::kChat; }

  const Tokenizer& tokenizer_;
  const ApiKind kind_;
  const bool with_logprobs_, include_usage_;
  const int32_t num_completions_;  // of each prompt
  const std::string model_name_, id_;
  const int64_t created_;
  std::vector<Choice> choices_;  // [P x n]
  size_t num_unfinished_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_completion_tokens_ = 0;
};

}  // namespace temper
