// The bodies of POST /v1/chat/completions and /v1/completions, read and checked: the fields are OpenAI's and vLLM's.
// What is asked for and cannot be done is refused with the field's name, never passed over. Pure functions, any thread.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/format.h"
#include "core/rollout_types.h"
#include "data/prompt_encoder.h"

namespace temper {

// An answer other than 200, in OpenAI's error object.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string code, std::string param, const std::string& message)
      : std::runtime_error(message), status_(status), code_(std::move(code)), param_(std::move(param)) {}
  int status() const { return status_; }
  const std::string& code() const { return code_; }    // for programs; may be empty
  const std::string& param() const { return param_; }  // the field that is wrong; may be empty

 private:
  int status_;
  std::string code_, param_;
};

enum class ApiKind { kChat, kCompletion };

struct ServedModel {
  std::string name;
  const PromptEncoder* chat = nullptr;  // null: the model has no chat template
  const PromptEncoder* raw = nullptr;
  int64_t context = 0;          // tokens of a prompt and its completion together
  int64_t max_completions = 0;  // prompts x n of one request
};

struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::vector<std::vector<int32_t>> prompts;  // [P][tokens]
  int32_t num_completions = 1;                // n: of each prompt
  SamplingParams sampling;                    // max_new_tokens fits the longest prompt
  bool logprobs = false;
  bool stream = false;
  bool include_usage = false;  // a last chunk of a stream with the counts
};

// `fresh_seed`: of the draws where the request brings no seed. ApiError, or the ConfigError and FormatError of data and
// sampling.
ApiRequest parse_api_request(ApiKind kind, std::string_view body, const ServedModel& model, uint64_t fresh_seed);

}  // namespace temper
