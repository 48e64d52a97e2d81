#include "apps/serve_reply.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/utf8.h"

namespace temper {
namespace {

using json = nlohmann::ordered_json;

const char* name_of(FinishReason reason) { return reason == FinishReason::kStop ? "stop" : "length"; }

std::string sse(const json& object) { return "data: " + object.dump() + "\n\n"; }

}  // namespace

std::string error_body(int status, const std::string& message, const std::string& code, const std::string& param) {
  const char* type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
  const auto or_null = [](const std::string& text) { return text.empty() ? json() : json(text); };
  const json body = {
      {"error", {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

ApiReply::ApiReply(const ApiRequest& request, const Tokenizer& tokenizer, std::string model_name, const std::string& id,
                   int64_t created)
    : tokenizer_(tokenizer),
      kind_(request.kind),
      with_logprobs_(request.logprobs),
      include_usage_(request.include_usage),
      num_completions_(request.num_completions),
      model_name_(std::move(model_name)),
      id_((request.kind == ApiKind::kChat ? "chatcmpl-" : "cmpl-") + id),
      created_(created) {
  for (const std::vector<int32_t>& prompt : request.prompts) num_prompt_tokens_ += static_cast<int64_t>(prompt.size());
  num_unfinished_ = request.prompts.size() * static_cast<size_t>(num_completions_);
  choices_.assign(num_unfinished_, Choice{.text = TextStream(request.sampling.stop)});
}

json ApiReply::envelope(bool chunk) const {
  const char* object = !chat() ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_name_}};
}

json ApiReply::usage() const {
  return {{"prompt_tokens", num_prompt_tokens_},
          {"completion_tokens", num_completion_tokens_},
          {"total_tokens", num_prompt_tokens_ + num_completion_tokens_}};
}

// One entry a drawn token, the one that ended the completion too. num_characters counts on over the pieces of a stream.
json ApiReply::logprobs_of(const std::vector<int32_t>& token_ids, const std::vector<float>& logprobs,
                           int64_t& num_characters) const {
  if (!with_logprobs_) return nullptr;
  json content = json::array(), texts = json::array(), offsets = json::array();
  for (size_t i = 0; i < token_ids.size(); ++i) {
    const std::string& bytes = tokenizer_.token_bytes(token_ids[i]);
    const std::string text = to_valid_utf8(bytes);
    if (chat()) {
      json numbers = json::array();
      for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
      content.push_back(
          {{"token", text}, {"logprob", logprobs[i]}, {"bytes", numbers}, {"top_logprobs", json::array()}});
    } else {
      texts.push_back(text);
      offsets.push_back(num_characters);
      if (!tokenizer_.is_special(token_ids[i])) num_characters += count_utf8_characters(bytes);
    }
  }
  if (chat()) return {{"content", content}, {"refusal", nullptr}};
  return {{"text_offset", offsets}, {"token_logprobs", logprobs}, {"tokens", texts}, {"top_logprobs", nullptr}};
}

std::string ApiReply::whole(const std::vector<GenerationResult>& results) {
  json choices = json::array();
  for (const GenerationResult& result : results)
    for (const Completion& completion : result.completions) {
      int64_t num_characters = 0;
      json choice = {{"index", choices.size()}};
      if (chat())
        choice["message"] = {{"role", "assistant"}, {"content", completion.text}, {"refusal", nullptr}};
      else
        choice["text"] = completion.text;
      choice["logprobs"] = logprobs_of(completion.token_ids, completion.logprobs, num_characters);
      choice["finish_reason"] = name_of(completion.finish_reason);
      choices.push_back(std::move(choice));
      num_completion_tokens_ += static_cast<int64_t>(completion.token_ids.size());
    }
  num_unfinished_ = 0;
  json reply = envelope(false);
  reply["choices"] = std::move(choices);
  reply["usage"] = usage();
  return reply.dump();
}

std::string ApiReply::event(json choice) const {
  json chunk = envelope(true);
  chunk["choices"] = json::array({std::move(choice)});
  if (include_usage_) chunk["usage"] = nullptr;
  return sse(chunk);
}

std::string ApiReply::opening() const {
  std::string out;
  if (chat())
    for (size_t i = 0; i < choices_.size(); ++i)
      out += event({{"index", i},
                    {"delta", {{"role", "assistant"}, {"content", ""}}},
                    {"logprobs", nullptr},
                    {"finish_reason", nullptr}});
  return out;
}

std::string ApiReply::chunks(const std::vector<StepToken>& tokens) {
  std::string out;
  for (const StepToken& token : tokens) {
    const auto index = static_cast<size_t>(token.id * num_completions_ + token.completion);
    TEMPER_CHECK(index < choices_.size(), "a token of prompt {}, completion {}", token.id, token.completion);
    Choice& choice = choices_[index];
    ++num_completion_tokens_;
    if (token.is_text) choice.pending_text += choice.text.append(tokenizer_.token_bytes(token.token_id));
    if (with_logprobs_) {
      choice.token_ids.push_back(token.token_id);
      choice.logprobs.push_back(token.logprob);
    }
    if (token.finished) {
      choice.pending_text += choice.text.finish();
      --num_unfinished_;
    }
    // Log-probabilities of tokens whose text is held back go with the text.
    if (token.finished || !choice.pending_text.empty())
      out += flush(index, token.finished ? name_of(token.finish_reason) : nullptr);
  }
  return out;
}

std::string ApiReply::flush(size_t index, const char* finish_reason) {
  Choice& choice = choices_[index];
  json entry = {{"index", index}};
  if (chat())
    entry["delta"] = choice.pending_text.empty() ? json::object() : json{{"content", choice.pending_text}};
  else
    entry["text"] = choice.pending_text;
  entry["logprobs"] = logprobs_of(choice.token_ids, choice.logprobs, choice.num_characters);
  entry["finish_reason"] = finish_reason == nullptr ? json() : json(finish_reason);
  choice.pending_text.clear();
  choice.token_ids.clear();
  choice.logprobs.clear();
  return event(std::move(entry));
}

std::string ApiReply::closing() const {
  std::string out;
  if (include_usage_) {
    json chunk = envelope(true);
    chunk["choices"] = json::array();
    chunk["usage"] = usage();
    out += sse(chunk);
  }
  return out + "data: [DONE]\n\n";
}

}  // namespace temper
