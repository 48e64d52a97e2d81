#include "trainer/group_buffer.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

class Buffer {
 public:
  explicit Buffer(const StalenessLimits& limits, PolicyVersion version = 0) : buffer(limits, version) {}

  void begin_and_finish(int64_t ticket, PolicyVersion version) {
    buffer.begin(version);
    ASSERT_TRUE(buffer.finish(version, {ticket, version, {}}));
  }
  int64_t take() {  // the ticket; 0: nothing
    const auto taken = buffer.take(dropped);
    return taken ? taken->ticket : 0;
  }

  GroupBuffer buffer;
  std::vector<GroupBuffer::Finished> dropped;
};

TEST(GroupBuffer, AdmitsWhatTheNextStepsCanUse) {
  // (max_staleness + version + 1) * groups_per_step - (accepted + running)
  Buffer b({.max_staleness = 2, .groups_per_step = 4});
  EXPECT_EQ(b.buffer.free(), 12);
  for (int64_t i = 1; i <= 5; ++i) b.buffer.begin(0);
  EXPECT_EQ(b.buffer.free(), 7);
  ASSERT_TRUE(b.buffer.finish(0, {1, 0, {}}));
  EXPECT_EQ(b.buffer.free(), 7);  // finished counts as running did
  EXPECT_EQ(b.take(), 1);
  EXPECT_EQ(b.buffer.free(), 7);
  b.buffer.advance(1);  // a short batch has used its step: 4 slots, not 1
  EXPECT_EQ(b.buffer.free(), 16 - 4 - 4);
}

TEST(GroupBuffer, RunsNoMoreAtOnceThanAllowed) {
  Buffer b({.max_staleness = 2, .groups_per_step = 4, .max_concurrent = 3});
  EXPECT_EQ(b.buffer.free(), 3);
  b.buffer.begin(0);
  b.buffer.begin(0);
  EXPECT_EQ(b.buffer.free(), 1);
}

TEST(GroupBuffer, GroupsThatTeachNothingLeaveTheCount) {
  Buffer b({.max_staleness = 0, .groups_per_step = 2});
  b.begin_and_finish(1, 0);
  b.begin_and_finish(2, 0);
  EXPECT_EQ(b.buffer.free(), 0);
  EXPECT_EQ(b.take(), 1);
  b.buffer.filtered();
  EXPECT_EQ(b.buffer.free(), 1);
  b.buffer.begin(0);
  b.buffer.give_up(0);
  EXPECT_EQ(b.buffer.free(), 1);
}

TEST(GroupBuffer, AGroupMayBeAsOldAsItsOwnStepAllows) {
  Buffer b({.max_staleness = 1, .groups_per_step = 2}, 5);
  EXPECT_EQ(b.buffer.next_floor(), 4);  // of step 5
  b.buffer.begin(4);
  b.buffer.begin(4);
  EXPECT_EQ(b.buffer.next_floor(), 5);  // of step 6
}

TEST(GroupBuffer, TooOldGroupsAreDroppedWhenABatchIsTaken) {
  Buffer b({.max_staleness = 1, .groups_per_step = 1});
  b.begin_and_finish(1, 0);
  b.begin_and_finish(2, 0);
  EXPECT_EQ(b.take(), 1);
  b.buffer.advance(1);
  b.buffer.advance(2);  // 2 is of version 0
  EXPECT_EQ(b.take(), 0);
  ASSERT_EQ(b.dropped.size(), 1u);
  EXPECT_EQ(b.dropped[0].ticket, 2);
  b.buffer.begin(0);
  EXPECT_FALSE(b.buffer.finish(0, {3, 0, {}}));  // and at once where it comes too late
}

TEST(GroupBuffer, TheOldestComesFirst) {
  Buffer b({.max_staleness = 3, .groups_per_step = 4}, 3);
  b.begin_and_finish(1, 3);
  b.begin_and_finish(2, 1);
  b.begin_and_finish(3, 2);
  b.begin_and_finish(4, 1);
  EXPECT_EQ(b.take(), 2);
  EXPECT_EQ(b.take(), 4);
  EXPECT_EQ(b.take(), 3);
  EXPECT_EQ(b.take(), 1);
  EXPECT_EQ(b.take(), 0);
}

TEST(GroupBuffer, WaitKeepsASlotForAGroupThatWouldBecomeTooOld) {
  for (const StalenessPolicy policy : {StalenessPolicy::kDrop, StalenessPolicy::kWait}) {
    Buffer b({.max_staleness = 1, .groups_per_step = 1, .policy = policy});
    b.buffer.begin(0);  // still generated with version 0: step 1 is its last
    b.begin_and_finish(2, 0);
    EXPECT_EQ(b.take(), 2);  // step 0
    b.buffer.advance(1);
    b.begin_and_finish(3, 1);
    // Step 1 has one slot: kDrop gives it to the group that is there, kWait keeps it.
    EXPECT_EQ(b.take(), policy == StalenessPolicy::kWait ? 0 : 3);
    if (policy == StalenessPolicy::kDrop) continue;
    ASSERT_TRUE(b.buffer.finish(0, {1, 0, {}}));
    EXPECT_EQ(b.take(), 1);
    b.buffer.advance(2);
    EXPECT_EQ(b.take(), 3);
    EXPECT_TRUE(b.dropped.empty());
  }
}

}  // namespace
}  // namespace temper
