#include "apps/serve_reply.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace temper {
namespace {

using nlohmann::json;

// The objects of server-sent events; the last event must be [DONE] when `done`.
std::vector<json> events(const std::string& text, bool done = false) {
  std::vector<json> objects;
  std::vector<std::string> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find("\n\n", at);
    EXPECT_NE(end, std::string::npos);
    EXPECT_EQ(text.substr(at, 6), "data: ");
    parts.push_back(text.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  if (done) {
    EXPECT_EQ(parts.back(), "[DONE]");
    parts.pop_back();
  }
  for (const std::string& part : parts) objects.push_back(json::parse(part));
  return objects;
}

ApiRequest request_of(ApiKind kind, int n = 1) {
  ApiRequest request;
  request.kind = kind;
  request.prompts = {{1, 2, 3}};
  request.num_completions = n;
  request.logprobs = true;
  request.stream = true;
  request.include_usage = true;
  request.sampling.stop = {"END"};
  return request;
}

StepToken token(int32_t completion, int32_t id, bool finished = false) {
  return {.completion = completion, .token_id = id, .logprob = -0.5f, .is_text = id < 256, .finished = finished};
}

Completion completion(std::vector<int32_t> ids, std::vector<float> logprobs, const std::string& text,
                      FinishReason reason = FinishReason::kStop) {
  Completion made;
  made.token_ids = std::move(ids);
  made.logprobs = std::move(logprobs);
  made.text = text;
  made.finish_reason = reason;
  return made;
}

TEST(ApiReply, WholeChatIsOpenAisObject) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  ApiReply reply(request_of(ApiKind::kChat, 2), tokenizer, "tiny", "42", 1000);
  GenerationResult result;
  result.completions = {completion({104, 105, 256}, {-1, -2, -3}, "hi"),
                        completion({0xC3}, {-1}, "\uFFFD", FinishReason::kLength)};
  const json body = json::parse(reply.whole({result}));
  EXPECT_EQ(body["id"], "chatcmpl-42");
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["created"], 1000);
  EXPECT_EQ(body["model"], "tiny");
  EXPECT_EQ(body["usage"], json({{"prompt_tokens", 3}, {"completion_tokens", 4}, {"total_tokens", 7}}));
  ASSERT_EQ(body["choices"].size(), 2u);
  EXPECT_EQ(body["choices"][0]["message"], json({{"role", "assistant"}, {"content", "hi"}, {"refusal", nullptr}}));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"][1],
            json({{"token", "i"}, {"logprob", -2.0}, {"bytes", {105}}, {"top_logprobs", json::array()}}));
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"][2]["token"], "<|endoftext|>");
  EXPECT_EQ(body["choices"][1]["logprobs"]["content"][0]["bytes"], json({0xC3}));
}

TEST(ApiReply, WholeCompletionIsOpenAisObject) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  ApiReply reply(request_of(ApiKind::kCompletion), tokenizer, "tiny", "42", 1000);
  GenerationResult result;
  result.completions = {completion({0xC3, 0xA9, 105}, {-1, -2, -3}, "\u00E9i")};
  const json body = json::parse(reply.whole({result}));
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], "\u00E9i");
  const json& logprobs = body["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["token_logprobs"], json({-1.0, -2.0, -3.0}));
  EXPECT_EQ(logprobs["tokens"], json({"\uFFFD", "\uFFFD", "i"}));
  EXPECT_EQ(logprobs["text_offset"], json({0, 1, 1}));  // in characters
  EXPECT_TRUE(logprobs["top_logprobs"].is_null());
}

TEST(ApiReply, ChatStreamOpensGrowsAndCloses) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  ApiReply reply(request_of(ApiKind::kChat, 2), tokenizer, "tiny", "42", 1000);
  const auto opening = events(reply.opening());
  ASSERT_EQ(opening.size(), 2u);
  EXPECT_EQ(opening[1]["object"], "chat.completion.chunk");
  EXPECT_EQ(opening[1]["choices"][0]["index"], 1);
  EXPECT_EQ(opening[1]["choices"][0]["delta"], json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_TRUE(opening[1]["usage"].is_null());

  const auto first = events(reply.chunks({token(0, 'h'), token(1, 0xC3)}));
  ASSERT_EQ(first.size(), 1u);  // half a character is not shown
  EXPECT_EQ(first[0]["choices"][0]["delta"], json({{"content", "h"}}));
  EXPECT_TRUE(first[0]["choices"][0]["finish_reason"].is_null());
  EXPECT_FALSE(reply.finished());

  const auto second = events(reply.chunks({token(0, 256, true), token(1, 0xA9)}));
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second[0]["choices"][0]["delta"], json::object());
  EXPECT_EQ(second[0]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(second[1]["choices"][0]["delta"], json({{"content", "\u00E9"}}));
  EXPECT_EQ(second[1]["choices"][0]["logprobs"]["content"].size(), 2u);  // of both halves

  StepToken last = token(1, 'E', true);
  last.finish_reason = FinishReason::kLength;
  const auto third = events(reply.chunks({last}));
  EXPECT_EQ(third.at(0)["choices"][0]["delta"], json({{"content", "E"}}));  // no stop string came of it
  EXPECT_EQ(third.at(0)["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(reply.finished());

  const auto closing = events(reply.closing(), true);
  ASSERT_EQ(closing.size(), 1u);
  EXPECT_EQ(closing[0]["choices"], json::array());
  EXPECT_EQ(closing[0]["usage"], json({{"prompt_tokens", 3}, {"completion_tokens", 5}, {"total_tokens", 8}}));
}

TEST(ApiReply, StreamOfCompletionsNeverLeaksAStopString) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  ApiReply reply(request_of(ApiKind::kCompletion), tokenizer, "tiny", "42", 1000);
  EXPECT_EQ(reply.opening(), "");
  EXPECT_EQ(events(reply.chunks({token(0, 'a')})).at(0)["choices"][0]["text"], "a");
  EXPECT_EQ(reply.chunks({token(0, 'E')}), "");
  EXPECT_EQ(reply.chunks({token(0, 'N')}), "");
  const auto last = events(reply.chunks({token(0, 'D', true)}));
  EXPECT_EQ(last.at(0)["choices"][0]["text"], "");
  EXPECT_EQ(last[0]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(last[0]["choices"][0]["logprobs"]["tokens"], json({"E", "N", "D"}));
  EXPECT_EQ(last[0]["choices"][0]["logprobs"]["text_offset"], json({1, 2, 3}));
}

TEST(ErrorBody, IsOpenAisObject) {
  const json error = json::parse(error_body(404, "no such model", "model_not_found", "model"))["error"];
  EXPECT_EQ(error, json({{"message", "no such model"},
                         {"type", "invalid_request_error"},
                         {"param", "model"},
                         {"code", "model_not_found"}}));
  EXPECT_EQ(json::parse(error_body(429, "x"))["error"]["type"], "rate_limit_error");
  EXPECT_EQ(json::parse(error_body(503, "x"))["error"]["type"], "server_error");
  EXPECT_TRUE(json::parse(error_body(400, "\xFF"))["error"]["param"].is_null());
}

}  // namespace
}  // namespace temper
