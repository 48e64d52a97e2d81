#include "comm/packed_completions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "comm/frame_queue.h"
#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Completion completion_of(std::vector<int32_t> ids, PolicyVersion version) {
  Completion one;
  const size_t size = ids.size();
  one.token_ids = std::move(ids);
  one.logprobs.assign(size, -1.5F);
  one.behavior_logprobs.assign(size, -2.5F);
  one.policy_versions.assign(size, version);
  one.mask.assign(size, 1);
  one.text = "text";
  one.rewards = {0.5, 1};
  return one;
}

TEST(PackedCompletions, TellWhatIsInThemAndUnfoldToIt) {
  Completion mixed = completion_of({70000, 3, 12}, 4);
  mixed.policy_versions = {4, 5, 5};
  Completion failed = completion_of({9}, 6);
  failed.error = "late";
  failed.rewards.clear();
  const std::vector<Completion> completions = {mixed, failed, {}};
  const PackedCompletions packed(completions);
  ASSERT_EQ(packed.size(), 3);
  EXPECT_EQ(packed.span()->oldest, 4);
  EXPECT_EQ(packed.span()->newest, 6);
  const auto& facts = packed.facts();
  EXPECT_EQ(facts[0].num_tokens, 3);
  EXPECT_EQ(facts[0].lowest_id, 3);
  EXPECT_EQ(facts[0].highest_id, 70000);
  EXPECT_EQ(facts[0].num_rewards, 2);
  EXPECT_FALSE(facts[0].failed);
  EXPECT_TRUE(facts[1].failed);
  EXPECT_EQ(facts[1].num_rewards, 0);
  EXPECT_EQ(facts[2].num_tokens, 0);
  const std::vector<Completion> back = packed.unpack();
  EXPECT_EQ(back[0].token_ids, mixed.token_ids);
  EXPECT_EQ(back[0].policy_versions, mixed.policy_versions);
  EXPECT_EQ(back[0].behavior_logprobs, mixed.behavior_logprobs);
  EXPECT_EQ(back[1].error, "late");

  WireWriter written, packed_written;
  write_completions(completions, written);
  packed.write(packed_written);
  const std::string bytes = written.take();
  EXPECT_EQ(packed_written.take(), bytes);
  WireReader reader(bytes);
  EXPECT_EQ(PackedCompletions::read(reader).facts()[0].highest_id, 70000);
  EXPECT_TRUE(reader.at_end());
}

TEST(PackedCompletions, WithoutTokensHaveNoVersions) {
  EXPECT_FALSE(PackedCompletions().span());
  EXPECT_TRUE(PackedCompletions().unpack().empty());
  EXPECT_FALSE(PackedCompletions(std::vector<Completion>(2)).span());
}

TEST(PackedCompletions, AreNotMadeOfWhatContradictsItself) {
  const auto error = [](const auto& change) -> std::string {
    Completion one = completion_of({1, 2}, 3);
    change(one);
    try {
      PackedCompletions(std::vector{one});
    } catch (const FormatError& refused) {
      return refused.what();
    }
    return "";
  };
  EXPECT_EQ(error([](Completion&) {}), "");
  EXPECT_THAT(error([](Completion& one) { one.logprobs.pop_back(); }), HasSubstr("2 tokens comes with 1, 2, 2 and 2"));
  EXPECT_THAT(error([](Completion& one) { one.mask.clear(); }), HasSubstr("2 tokens comes with 2, 2, 2 and 0"));
  EXPECT_THAT(error([](Completion& one) { one.policy_versions.push_back(3); }), HasSubstr("a run of 3 values"));
  EXPECT_THAT(error([](Completion& one) { one.mask[1] = 2; }), HasSubstr("mask has the value 2"));
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_THAT(error([bad](Completion& one) { one.logprobs[1] = bad; }), HasSubstr("not finite"));
    EXPECT_THAT(error([bad](Completion& one) { one.behavior_logprobs[0] = bad; }), HasSubstr("not finite"));
  }
}

// Two readers of the same bytes: what the hub keeps packed, workers and trainer unfold.
TEST(PackedCompletions, TakeTheBytesThatTheOtherReaderTakesAndNoOthers) {
  Completion mixed = completion_of({70000, 3, 12}, 4);
  mixed.policy_versions = {4, 5, 5};
  mixed.mask = {1, 0, 1};
  Completion same = completion_of({1, 2}, 7);
  same.behavior_logprobs = same.logprobs;
  same.error = "late";
  WireWriter writer;
  write_completions({mixed, same, {}, completion_of({5}, 1)}, writer);
  const std::string whole = writer.take();
  const auto agrees = [](const Completion& one) {
    const size_t size = one.token_ids.size();
    const auto finite = [](float x) { return std::isfinite(x); };
    return one.logprobs.size() == size && one.behavior_logprobs.size() == size && one.policy_versions.size() == size &&
           one.mask.size() == size && std::all_of(one.logprobs.begin(), one.logprobs.end(), finite) &&
           std::all_of(one.behavior_logprobs.begin(), one.behavior_logprobs.end(), finite) &&
           std::all_of(one.mask.begin(), one.mask.end(), [](uint8_t mask) { return mask <= 1; });
  };
  SplitMix64 rng(5);
  int taken = 0, refused = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string bytes = whole;
    for (auto changes = rng.in_range(0, 3); changes > 0; --changes)
      bytes[static_cast<size_t>(rng.in_range(0, std::ssize(bytes) - 1))] ^= static_cast<char>(1 << rng.in_range(0, 7));
    if (rng.in_range(0, 9) == 0) bytes.resize(static_cast<size_t>(rng.in_range(0, std::ssize(bytes))));
    std::optional<std::vector<Completion>> completions;
    WireReader reader(bytes), packing_reader(bytes);
    try {
      completions = read_completions(reader);
    } catch (const FormatError&) {
    }
    if (completions && !std::all_of(completions->begin(), completions->end(), agrees)) completions.reset();
    std::optional<PackedCompletions> packed;
    try {
      packed = PackedCompletions::read(packing_reader);
    } catch (const FormatError&) {
    }
    ASSERT_EQ(completions.has_value(), packed.has_value()) << "mutation " << i;
    ++(packed ? taken : refused);
    if (!packed) continue;
    EXPECT_EQ(reader.left(), packing_reader.left());
    WireWriter a, b;
    write_completions(*completions, a);
    write_completions(packed->unpack(), b);
    ASSERT_EQ(a.take(), b.take()) << "mutation " << i;
  }
  EXPECT_GT(taken, 5'000);
  EXPECT_GT(refused, 5'000);
}

TEST(FrameQueue, PutsSeveralMessagesIntoAFrameAndKeepsWhatWasNotSent) {
  FrameQueue queue;
  const std::string large(70'000, 'x');
  for (const std::string& message : {std::string("a"), std::string("b"), large, std::string("c")}) queue.add(message);
  std::vector<std::string> sent;
  const auto send = [&sent](size_t most) {
    return [&sent, most](const std::string& frame) {
      if (sent.size() == most) return SendResult::kNoCredit;
      sent.push_back(frame);
      return SendResult::kSent;
    };
  };
  EXPECT_EQ(queue.send_all(send(1)), SendResult::kNoCredit);
  EXPECT_THAT(sent, ElementsAre("ab"));
  EXPECT_EQ(queue.send_all(send(9)), SendResult::kSent);
  EXPECT_THAT(sent, ElementsAre("ab", large, "c"));
}

}  // namespace
}  // namespace temper
