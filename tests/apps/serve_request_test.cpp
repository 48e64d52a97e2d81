#include "apps/serve_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

class ServeRequest : public testing::Test {
 protected:
  ServeRequest()
      : tokenizer_(Tokenizer::bytes()),
        template_(ChatTemplate::recognise(kChatMl, "test")),
        raw_(tokenizer_, nullptr),
        chat_(tokenizer_, &template_) {
    model_ = {.name = "tiny", .chat = &chat_, .raw = &raw_, .context = 200, .max_completions = 8};
  }

  // `more`: JSON of fields that are added to a body which is fine, or take the place of its.
  ApiRequest chat(const std::string& more = "{}") {
    return parse(ApiKind::kChat, R"({"messages": [{"role": "user", "content": "hi"}]})", more);
  }
  ApiRequest complete(const std::string& more = "{}") {
    return parse(ApiKind::kCompletion, R"({"prompt": "hi"})", more);
  }
  ApiRequest complete(const std::string& prompt, int max_tokens) {
    return complete(json({{"prompt", prompt}, {"max_tokens", max_tokens}}).dump());
  }
  ApiRequest parse(ApiKind kind, const std::string& base, const std::string& more) {
    json body = json::parse(base);
    body.update(json::parse(more));
    return parse_api_request(kind, body.dump(), model_, 77);
  }

  template <class Call>
  std::string refusal(Call call, int status = 400) {
    try {
      call();
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status(), status) << error.what();
      param_ = error.param();
      return error.what();
    } catch (const ConfigError& error) {
      param_ = "";
      return error.what();
    }
    ADD_FAILURE() << "was accepted";
    return "";
  }
  std::string chat_refusal(const std::string& more, int status = 400) {
    return refusal([&] { chat(more); }, status);
  }
  std::string refusal_of(const std::string& more, int status = 400) {
    return refusal([&] { complete(more); }, status);
  }

  std::string text_of(const Ids& ids) const { return tokenizer_.decode(ids, false); }

  const Tokenizer tokenizer_;
  const ChatTemplate template_;
  const PromptEncoder raw_, chat_;
  ServedModel model_;
  std::string param_;
};

TEST_F(ServeRequest, DefaultsAreThoseOfOpenAi) {
  const ApiRequest request = chat();
  EXPECT_EQ(text_of(request.prompts.at(0)), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(request.num_completions, 1);
  EXPECT_EQ(request.sampling.temperature, 1);
  EXPECT_EQ(request.sampling.top_p, 1);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.min_p, 0);
  EXPECT_EQ(request.sampling.seed, 77u);
  EXPECT_FALSE(request.stream || request.logprobs || request.include_usage);
  // A chat may fill the context, a completion has 16 tokens.
  EXPECT_EQ(request.sampling.max_new_tokens, 200 - static_cast<int>(request.prompts[0].size()));
  EXPECT_EQ(complete().sampling.max_new_tokens, 16);
  EXPECT_EQ(complete(R"({"prompt": ")" + std::string(195, 'x') + "\"}").sampling.max_new_tokens, 5);
}

TEST_F(ServeRequest, ReadsWhatOpenAiAndVllmCallIt) {
  const ApiRequest request =
      chat(R"({"model": "tiny", "n": 3, "max_completion_tokens": 9, "temperature": 0, "top_p": 0.5, "top_k": 5,
               "min_p": 0.1, "stop": ["END", "\n"], "seed": -3, "logprobs": true, "stream": true,
               "stream_options": {"include_usage": true}, "ignore_eos": true})");
  EXPECT_EQ(request.num_completions, 3);
  EXPECT_EQ(request.sampling.max_new_tokens, 9);
  EXPECT_EQ(request.sampling.temperature, 0);
  EXPECT_EQ(request.sampling.top_p, 0.5);
  EXPECT_EQ(request.sampling.top_k, 5);
  EXPECT_EQ(request.sampling.min_p, 0.1);
  EXPECT_THAT(request.sampling.stop, ElementsAre("END", "\n"));
  EXPECT_EQ(request.sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_TRUE(request.sampling.ignore_eos && request.logprobs && request.stream && request.include_usage);
  EXPECT_EQ(chat(R"({"max_tokens": 4})").sampling.max_new_tokens, 4);
  EXPECT_EQ(chat(R"({"top_k": -1})").sampling.top_k, 0);  // vLLM's word for all
  EXPECT_THAT(chat(R"({"stop": "x"})").sampling.stop, ElementsAre("x"));
  EXPECT_TRUE(complete(R"({"logprobs": 0})").logprobs);
}

TEST_F(ServeRequest, NullIsNotGivenAndNeutralValuesAskForNothing) {
  chat(R"({"model": null, "n": null, "max_tokens": null, "stop": null, "seed": null, "logprobs": null})");
  chat(R"({"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1, "logit_bias": {}, "tools": [],
           "response_format": {"type": "text"}, "tool_choice": "none", "top_logprobs": 0, "user": "me", "stop": [],
           "modalities": ["text"], "stop_token_ids": []})");
  complete(R"({"echo": false, "best_of": 2, "n": 2, "suffix": null})");
}

TEST_F(ServeRequest, PromptsAreTextsOrTokenIdsOrListsOfThem) {
  EXPECT_THAT(complete(R"({"prompt": "hi"})").prompts, ElementsAre(Ids{104, 105}));
  EXPECT_THAT(complete(R"({"prompt": ["a", "b"]})").prompts, ElementsAre(Ids{97}, Ids{98}));
  EXPECT_THAT(complete(R"({"prompt": [1, 2]})").prompts, ElementsAre(Ids{1, 2}));
  EXPECT_THAT(complete(R"({"prompt": [[1, 2], [3]]})").prompts, ElementsAre(Ids{1, 2}, Ids{3}));
  EXPECT_THAT(refusal_of(R"({"prompt": []})"), HasSubstr("an empty list"));
  EXPECT_THAT(refusal_of(R"({"prompt": ""})"), HasSubstr("no tokens"));
  EXPECT_THAT(refusal_of(R"({"prompt": [[1], []]})"), HasSubstr("no tokens"));
  EXPECT_THAT(refusal_of(R"({"prompt": null})"), HasSubstr("prompt is missing"));
  EXPECT_THAT(refusal_of(R"({"prompt": [1, "a"]})"), HasSubstr("\"a\" among token ids"));
  EXPECT_THAT(refusal_of(R"({"prompt": [[1, -2]]})"), AllOf(HasSubstr("prompt[0]"), HasSubstr("-2")));
  EXPECT_THAT(refusal_of(R"({"prompt": [18446744073709551615]})"), HasSubstr("token ids"));
  EXPECT_THAT(refusal_of(R"({"prompt": [["a", true]]})"), HasSubstr("prompt[0]"));
  EXPECT_THAT(refusal_of(R"({"prompt": ["a", 1]})"), HasSubstr("prompt[1] is 1"));
  EXPECT_THAT(refusal_of(R"({"prompt": 7})"), HasSubstr("prompt is 7"));
}

TEST_F(ServeRequest, MessagesHaveRolesAndTexts) {
  const ApiRequest request = chat(R"({"messages": [
      {"role": "developer", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": "c", "refusal": null, "tool_calls": []}]})");
  EXPECT_EQ(text_of(request.prompts.at(0)),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nc"
            "<|im_end|>\n<|im_start|>assistant\n");
  const auto refused = [&](const std::string& messages) {
    const std::string message = chat_refusal("{\"messages\": " + messages + "}");
    EXPECT_EQ(param_, "messages");
    return message;
  };
  EXPECT_THAT(refused("null"), HasSubstr("messages is missing"));
  EXPECT_THAT(refused("[]"), HasSubstr("at least one"));
  EXPECT_THAT(refused(R"(["hi"])"), HasSubstr("messages[0] is \"hi\""));
  EXPECT_THAT(refused(R"([{"content": "x"}])"), HasSubstr("messages[0] has no role"));
  EXPECT_THAT(refused(R"([{"role": "tool", "content": "x"}])"), AllOf(HasSubstr("tool"), HasSubstr("assistant")));
  EXPECT_THAT(refused(R"([{"role": "user"}])"), HasSubstr("messages[0].content is null"));
  EXPECT_THAT(refused(R"([{"role": "user", "content": [{"type": "image_url"}]}])"), HasSubstr("image_url"));
  EXPECT_THAT(refused(R"([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}])"),
              HasSubstr("tool_calls"));
  model_.chat = nullptr;
  EXPECT_THAT(chat_refusal("{}"), AllOf(HasSubstr("no chat template"), HasSubstr("/v1/completions")));
}

TEST_F(ServeRequest, WhatIsNotSupportedIsRefusedByName) {
  const std::pair<std::string, std::string> fields[] = {
      {"frequency_penalty", "0.5"}, {"logit_bias", R"({"1": 2})"},           {"top_logprobs", "5"},
      {"min_tokens", "3"},          {"response_format", R"({"type": "x"})"}, {"tools", R"([{"type": "function"}])"},
      {"stop_token_ids", "[1]"},    {"continue_final_message", "true"},      {"audio", "{}"}};
  for (const auto& [name, value] : fields) {
    EXPECT_THAT(chat_refusal("{\"" + name + "\": " + value + "}"),
                AllOf(HasSubstr(name + " is "), HasSubstr("Leave it out")));
    EXPECT_EQ(param_, name);
  }
  EXPECT_THAT(refusal_of(R"({"echo": true})"), HasSubstr("echo is true"));
  EXPECT_THAT(refusal_of(R"({"suffix": "x"})"), HasSubstr("suffix is \"x\""));
  EXPECT_THAT(refusal_of(R"({"best_of": 4})"), HasSubstr("best_of is 4"));
  EXPECT_THAT(refusal_of(R"({"logprobs": 3})"), AllOf(HasSubstr("logprobs is 3"), HasSubstr("Give 0")));
  EXPECT_THAT(refusal_of(R"({"max_token": 3})"), AllOf(HasSubstr("\"max_token\""), HasSubstr("nearest is max_tokens")));
  EXPECT_EQ(param_, "max_token");
  EXPECT_THAT(chat_refusal(R"({"model": "other"})", 404), AllOf(HasSubstr("\"other\""), HasSubstr("tiny")));
}

TEST_F(ServeRequest, ImpossibleValuesAreRefusedWithTheRange) {
  EXPECT_THAT(chat_refusal(R"({"max_tokens": 0})"), HasSubstr("max_tokens is 0: give an integer from 1"));
  EXPECT_THAT(chat_refusal(R"({"max_tokens": 2.5})"), HasSubstr("max_tokens is 2.5: give an integer"));
  EXPECT_THAT(chat_refusal(R"({"max_tokens": 18446744073709551615})"), HasSubstr("max_tokens"));
  EXPECT_THAT(chat_refusal(R"({"max_tokens": 3, "max_completion_tokens": 4})"), HasSubstr("give one of them"));
  EXPECT_THAT(chat_refusal(R"({"n": 0})"), HasSubstr("n is 0: give an integer from 1 to 8"));
  EXPECT_THAT(chat_refusal(R"({"n": 9})"), HasSubstr("n is 9"));
  EXPECT_THAT(refusal_of(R"({"n": 5, "prompt": ["a", "b"]})"), HasSubstr("10 completions"));
  EXPECT_THAT(refusal_of(R"({"prompt": ["a", "a", "a", "a", "a", "a", "a", "a", "a"]})"), HasSubstr("9 entries"));
  EXPECT_THAT(chat_refusal(R"({"temperature": -1})"), HasSubstr("temperature is -1"));
  EXPECT_THAT(chat_refusal(R"({"temperature": "hot"})"), HasSubstr("temperature is \"hot\": give a number"));
  EXPECT_THAT(chat_refusal(R"({"top_p": 0})"), HasSubstr("top_p is 0"));
  EXPECT_THAT(chat_refusal(R"({"top_k": -2})"), HasSubstr("top_k is -2"));
  EXPECT_THAT(chat_refusal(R"({"stream": "yes"})"), HasSubstr("stream is \"yes\": give true or false"));
  EXPECT_THAT(chat_refusal(R"({"stop": ""})"), HasSubstr("a stop string is empty"));
  EXPECT_THAT(chat_refusal(R"({"stop": [1]})"), HasSubstr("stop has 1"));
  EXPECT_THAT(chat_refusal(json({{"stop", std::vector<std::string>(17, "a")}}).dump()), HasSubstr("at most 16"));
  EXPECT_THAT(chat_refusal(json({{"stop", std::string(1025, 'a')}}).dump()), HasSubstr("1025 bytes"));
  EXPECT_THAT(chat_refusal(R"({"seed": 1.5})"), HasSubstr("seed is 1.5"));
  EXPECT_THAT(chat_refusal(R"({"stream_options": {"include_usage": true}})"), HasSubstr("needs \"stream\": true"));
  EXPECT_THAT(chat_refusal(R"({"stream": true, "stream_options": {"include_use": true}})"),
              HasSubstr("nearest is include_usage"));
}

TEST_F(ServeRequest, WhatTheContextCannotHoldIsRefusedWithTheNumbers) {
  const auto refused = [&](size_t length, int max_tokens) {
    return refusal([&] { complete(std::string(length, 'x'), max_tokens); });
  };
  EXPECT_THAT(refused(200, 1), AllOf(HasSubstr("maximum context length is 200 tokens"), HasSubstr("has 200")));
  EXPECT_THAT(refused(190, 11), AllOf(HasSubstr("you ask for 201"), HasSubstr("190"), HasSubstr("11")));
  EXPECT_EQ(complete(std::string(190, 'x'), 10).sampling.max_new_tokens, 10);
}

TEST_F(ServeRequest, WhatIsNoJsonObjectIsRefused) {
  const std::string hostile[] = {"",
                                 "{",
                                 "[]",
                                 "\"x\"",
                                 "null",
                                 "{\"prompt\": \"\xFF\"}",
                                 "{\"prompt\": \"\\ud800\"}",
                                 "{\"n\": 1e999, \"prompt\": \"x\"}",
                                 std::string(100000, '['),
                                 "{\"prompt\": NaN}"};
  for (const std::string& body : hostile)
    EXPECT_NE(refusal([&] { parse_api_request(ApiKind::kCompletion, body, model_, 0); }), "") << body.substr(0, 40);
}

}  // namespace
}  // namespace temper
