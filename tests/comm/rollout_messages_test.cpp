#include "comm/rollout_messages.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/error.h"
#include "core/rng.h"
#include "tests/comm/example_completion.h"

namespace temper {
namespace {

std::vector<RolloutMessage> one_of_each() {
  Lease lease;
  lease.id = 12;
  lease.attempt = 2;
  lease.oldest_version = 7;
  lease.exact = true;
  lease.timeout_ms = 60'000;
  lease.purpose = RolloutPurpose::kEval;
  lease.num_completions = 8;
  lease.sampling = {.temperature = 0.5,
                    .top_k = 3,
                    .top_p = 0.9,
                    .min_p = 0.1,
                    .max_new_tokens = 17,
                    .stop = {"a", "b"},
                    .ignore_eos = true,
                    .seed = 99};
  lease.prompt.serial = 5;
  lease.prompt.token_ids = {1, 2, 3};
  lease.prompt.fields = {{"k", "[1]"}};
  lease.partials = {example_completion(), {}};
  return {{0, Hello{"host/0", "build", "model", "config"}},
          {3, Heartbeat{6, 4, {1, 2, 3}}},
          {3, GroupResult{12, 5, std::vector{example_completion()}}},
          {3, HandBack{12, {example_completion(), {}}}},
          {3, Welcome{500, 7, {"tcp://a:1", "tcp://b:2"}}},
          {3, Refusal{RefusalReason::kOtherModel, "why"}},
          {3, lease},
          {3, CancelLease{12}},
          {3, Ack{12, ResultVerdict::kLate}},
          {3, WeightsAvailable{8}},
          {3, Goodbye{}}};
}

TEST(RolloutMessages, EachComesBackAsItWas) {
  ASSERT_EQ(one_of_each().size(), std::variant_size_v<RolloutMessage::Body>);
  for (const RolloutMessage& message : one_of_each()) {
    const std::string bytes = encode(message);
    const RolloutMessage back = decode_rollout_message(bytes);
    EXPECT_EQ(back.epoch, message.epoch);
    EXPECT_EQ(back.body.index(), message.body.index());
    EXPECT_EQ(encode(back), bytes) << message.body.index();
  }
  const RolloutMessage back = decode_rollout_message(encode(one_of_each()[6]));
  const Lease& lease = std::get<Lease>(back.body);
  EXPECT_EQ(lease.sampling.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(lease.sampling.seed, 99U);
  EXPECT_EQ(lease.prompt.token_ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(lease.partials[0].policy_versions, (std::vector<PolicyVersion>{9, 10}));
}

TEST(RolloutMessages, EveryFlippedBitAndEveryCutIsRefused) {
  for (const RolloutMessage& message : one_of_each()) {
    const std::string bytes = encode(message);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      std::string flipped = bytes;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
      EXPECT_THROW(decode_rollout_message(flipped), FormatError) << message.body.index() << " bit " << bit;
    }
    for (size_t size = 0; size < bytes.size(); ++size)
      EXPECT_THROW(decode_rollout_message(std::string_view(bytes).substr(0, size)), FormatError) << size;
    EXPECT_THROW(decode_rollout_message(bytes + '\0'), FormatError);
  }
}

TEST(RolloutMessages, GarbageIsRefused) {
  SplitMix64 rng(1);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(static_cast<size_t>(rng.in_range(0, 200)), '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.next());
    EXPECT_THROW(decode_rollout_message(bytes), FormatError);
  }
}

TEST(RolloutMessages, WhatContradictsItselfIsRefused) {
  const auto refused = [](RolloutMessage::Body body) {
    EXPECT_THROW(decode_rollout_message(encode({3, std::move(body)})), FormatError);
  };
  Completion uneven = example_completion();
  uneven.logprobs.pop_back();
  refused(HandBack{1, {uneven}});
  EXPECT_THROW(PackedCompletions(std::vector{uneven}), FormatError);
  Completion infinite = example_completion();
  infinite.behavior_logprobs[1] = -std::numeric_limits<float>::infinity();
  refused(HandBack{1, {infinite}});
  Completion masked = example_completion();
  masked.mask[0] = 2;
  refused(HandBack{1, {masked}});
  refused(Heartbeat{-2, 1, {}});
  refused(Heartbeat{0, -1, {}});
  refused(Hello{std::string(5000, 'x'), "", "", ""});
  refused(Lease{});  // no time
}

TEST(RolloutMessages, SeveralTravelInOneFrame) {
  std::string bytes;
  for (const RolloutMessage& message : one_of_each()) bytes += encode(message);
  const std::vector<RolloutMessage> back = decode_rollout_messages(bytes);
  ASSERT_EQ(back.size(), one_of_each().size());
  std::string again;
  for (const RolloutMessage& message : back) again += encode(message);
  EXPECT_EQ(again, bytes);
  EXPECT_THROW(decode_rollout_messages(""), FormatError);
  EXPECT_THROW(decode_rollout_messages(bytes + '\0'), FormatError);
  EXPECT_THROW(decode_rollout_messages(std::string_view(bytes).substr(0, bytes.size() - 1)), FormatError);
}

TEST(RolloutMessages, AnotherProtocolIsNamed) {
  std::string bytes = encode({3, Goodbye{}});
  bytes[4] = 9;
  try {
    decode_rollout_message(bytes);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("protocol 9, this build speaks 2"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace temper
