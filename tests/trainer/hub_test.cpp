#include "trainer/hub.h"

#include <gmock/gmock.h>

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

HubOptions options() {
  HubOptions options;
  options.build = "b1";
  options.model = "m1";
  options.config = "c1";
  options.epoch = 7;
  options.staleness = {.max_staleness = 1, .groups_per_step = 2};
  options.max_attempts = 2;
  options.num_rewards = 1;
  options.vocab_size = 50;
  options.weights_endpoints = {"tcp://there:1"};
  return options;
}

std::vector<Completion> completions(PolicyVersion version, int64_t count = 2) {
  Completion one;
  one.token_ids = {3, 4};
  one.logprobs = one.behavior_logprobs = {-1, -1};
  one.policy_versions = {version, version};
  one.mask = {1, 1};
  one.rewards = {1};
  return std::vector<Completion>(static_cast<size_t>(count), one);
}

class HubTest : public testing::Test {
 protected:
  void start(const HubOptions& with = options(), PolicyVersion version = 0) {
    hub.emplace(with, version, std::vector<LoggedGroup>(), [this](const LoggedGroup& group) {
      logged.push_back(group.serial);
      return true;
    });
  }
  void ask(std::vector<int64_t> serials, RolloutPurpose purpose = RolloutPurpose::kTrain) {
    std::vector<Prompt> prompts;
    for (const int64_t serial : serials) {
      prompts.emplace_back().serial = serial;
      prompts.back().token_ids = {static_cast<int32_t>(serial), 1};
    }
    hub->request(std::move(prompts), 2, {}, purpose);
  }
  void say(const std::string& route, RolloutMessage::Body body, int64_t epoch = 7) {
    hub->receive(route, {epoch, std::move(body)}, now);
  }
  void join(const std::string& route, int32_t credits = 4, PolicyVersion version = 0) {
    say(route, Hello{route.substr(0, route.find('/')), "b1", "m1", "c1"}, 0);
    say(route, Heartbeat{version, credits, {}});
  }
  // What was said to this worker since the last call, of one kind.
  template <class Body>
  std::vector<Body> heard(const std::string& route) {
    for (Hub::Outgoing& out : hub->take_outbox()) mail.push_back(std::move(out));
    std::vector<Body> found;
    std::erase_if(mail, [&](Hub::Outgoing& out) {
      auto* body = std::get_if<Body>(&out.message.body);
      if (out.route != route || body == nullptr) return false;
      found.push_back(std::move(*body));
      return true;
    });
    return found;
  }
  ResultVerdict bring(const std::string& route, const Lease& lease, PolicyVersion version) {
    say(route, GroupResult{lease.id, lease.prompt.serial, completions(version)});
    const auto acks = heard<Ack>(route);
    EXPECT_EQ(acks.size(), 1u);
    return acks.empty() ? ResultVerdict::kInvalid : acks.front().verdict;
  }

  std::optional<Hub> hub;
  std::vector<int64_t> logged;
  std::vector<Hub::Outgoing> mail;
  int64_t now = 1000;
};

TEST_F(HubTest, WorkersOfAnotherBuildModelOrConfigurationAreRefusedWithBothNamed) {
  start();
  const std::vector<Hello> strangers = {{"w", "b2", "m1", "c1"}, {"w", "b1", "m2", "c1"}, {"w", "b1", "m1", "c2"}};
  const RefusalReason reasons[] = {RefusalReason::kOtherBuild, RefusalReason::kOtherModel, RefusalReason::kOtherConfig};
  for (size_t i = 0; i < strangers.size(); ++i) {
    say("w/1", strangers[i], 0);
    const auto refusals = heard<Refusal>("w/1");
    ASSERT_EQ(refusals.size(), 1u);
    EXPECT_EQ(refusals[0].reason, reasons[i]);
    EXPECT_THAT(refusals[0].text, HasSubstr("1"));
    EXPECT_THAT(refusals[0].text, HasSubstr("2"));
  }
  EXPECT_EQ(hub->num_workers(), 0);
  join("w/1");
  const auto welcomes = heard<Welcome>("w/1");
  ASSERT_EQ(welcomes.size(), 1u);
  EXPECT_THAT(welcomes[0].weights_endpoints, ElementsAre("tcp://there:1"));
}

TEST_F(HubTest, LeasesGoToWhoHasFewestAndNoFurtherThanCredit) {
  start();
  join("a/1", 1);
  join("b/1", 3);
  ask({0, 1, 2, 3, 4});
  hub->tick(now);
  EXPECT_EQ(heard<Lease>("a/1").size(), 1u);
  EXPECT_EQ(heard<Lease>("b/1").size(), 3u);
  EXPECT_EQ(hub->num_leases(), 4);  // (1 + 0 + 1) * 2, though a prompt and no credit is left
}

TEST_F(HubTest, AGroupIsLoggedAcknowledgedAndTakenOnce) {
  start();
  join("a/1");
  ask({5});
  hub->tick(now);
  const auto leases = heard<Lease>("a/1");
  ASSERT_EQ(leases.size(), 1u);
  EXPECT_EQ(leases[0].prompt.serial, 5);
  EXPECT_FALSE(leases[0].exact);
  EXPECT_THAT(hub->unended(), ElementsAre(5));
  EXPECT_EQ(bring("a/1", leases[0], 0), ResultVerdict::kAccepted);
  EXPECT_THAT(logged, ElementsAre(5));
  EXPECT_EQ(bring("a/1", leases[0], 0), ResultVerdict::kDuplicate);
  EXPECT_EQ(bring("b/9", leases[0], 0), ResultVerdict::kDuplicate);  // whoever brings it
  EXPECT_THAT(hub->unended(), ElementsAre(5));                       // finished, not consumed
  const auto group = hub->take();
  ASSERT_TRUE(group);
  EXPECT_EQ(group->prompt.serial, 5);
  EXPECT_EQ(group->completions.size(), 2u);
  EXPECT_FALSE(hub->take());
  EXPECT_TRUE(hub->idle());
  EXPECT_THAT(hub->unended(), IsEmpty());
}

TEST_F(HubTest, OnPolicyLeasesGoToWorkersOfThatVersionAlone) {
  HubOptions on_policy = options();
  on_policy.staleness.max_staleness = 0;
  start(on_policy, 3);
  join("old/1", 4, 2);
  ask({0});
  hub->tick(now);
  EXPECT_THAT(heard<Lease>("old/1"), IsEmpty());
  join("new/1", 4, 3);
  const auto leases = heard<Lease>("new/1");
  ASSERT_EQ(leases.size(), 1u);
  EXPECT_TRUE(leases[0].exact);
  EXPECT_EQ(leases[0].oldest_version, 3);
}

TEST_F(HubTest, WhatALeaseDidNotAskForIsRefusedAndItsPromptGivenOutAgain) {
  start();
  join("a/1", 1);
  ask({0});
  hub->tick(now);
  const Lease lease = heard<Lease>("a/1").at(0);
  say("a/1", GroupResult{lease.id, 0, completions(0, 3)});  // three instead of two
  EXPECT_EQ(heard<Ack>("a/1").at(0).verdict, ResultVerdict::kInvalid);
  const Lease again = heard<Lease>("a/1").at(0);
  EXPECT_EQ(again.prompt.serial, 0);
  EXPECT_EQ(again.attempt, 2);
  EXPECT_EQ(bring("a/1", lease, 0), ResultVerdict::kLate);  // the first lease is over
  auto foreign = completions(0);
  foreign[1].token_ids[0] = 50;
  say("a/1", GroupResult{again.id, 0, foreign});
  EXPECT_EQ(heard<Ack>("a/1").at(0).verdict, ResultVerdict::kInvalid);
  // Two attempts were allowed: the trainer learns that the prompt failed, and why.
  const auto failed = hub->take();
  ASSERT_TRUE(failed);
  EXPECT_THAT(failed->completions.unpack().at(0).error, HasSubstr("given up after 2 attempts; the last: token id 50"));
}

TEST_F(HubTest, ASilentWorkersPromptsAreGivenToAnother) {
  start();
  join("a/1");
  ask({0, 1});
  hub->tick(now);
  const auto leases = heard<Lease>("a/1");
  ASSERT_EQ(leases.size(), 2u);
  now += options().worker_timeout_ms;
  join("b/1");
  hub->tick(now);
  EXPECT_EQ(heard<Lease>("b/1").size(), 2u);
  const auto reissues = hub->take_reissues();
  ASSERT_EQ(reissues.size(), 2u);
  EXPECT_EQ(reissues[0].serial, 0);
  EXPECT_EQ(reissues[0].from, "a");
  EXPECT_EQ(reissues[0].to, "b");
  EXPECT_EQ(reissues[0].waited_ms, 0);
  EXPECT_EQ(hub->num_workers(), 1);
  say("a/1", Heartbeat{0, 4, {leases[0].id, leases[1].id}});
  EXPECT_EQ(heard<Refusal>("a/1").at(0).reason, RefusalReason::kUnknownWorker);
  EXPECT_EQ(bring("a/1", leases[0], 0), ResultVerdict::kLate);
}

TEST_F(HubTest, AWorkerOfTheSameNameTakesTheEarlierOnesPlace) {
  start();
  join("a/1", 1);
  ask({0});
  hub->tick(now);
  EXPECT_EQ(heard<Lease>("a/1").size(), 1u);
  join("a/2", 1);
  EXPECT_EQ(hub->num_workers(), 1);
  EXPECT_EQ(heard<Lease>("a/2").at(0).attempt, 2);
}

TEST_F(HubTest, ALeaseThatHeartbeatsDoNotNameDidNotArrive) {
  start();
  join("a/1", 1);
  ask({0});
  hub->tick(now);
  const Lease lost = heard<Lease>("a/1").at(0);
  now += options().unnamed_after_ms;
  say("a/1", Heartbeat{0, 1, {}});
  EXPECT_NE(heard<Lease>("a/1").at(0).id, lost.id);
}

TEST_F(HubTest, LateLeasesAreCancelledAndGivenOutAgain) {
  start();
  join("a/1", 1);
  ask({0});
  hub->tick(now);
  const Lease late = heard<Lease>("a/1").at(0);
  now += options().lease_timeout_ms;
  say("a/1", Heartbeat{0, 1, {late.id}});
  hub->tick(now);
  EXPECT_EQ(heard<CancelLease>("a/1").at(0).lease, late.id);
  EXPECT_EQ(heard<Lease>("a/1").at(0).attempt, 2);
}

TEST_F(HubTest, WhatIsHandedBackGoesOnWithAnotherAndCountsAsNoFailure) {
  start();
  join("a/1", 1);
  ask({0});
  hub->tick(now);
  std::vector<Completion> begun = completions(0);
  begun[1].finish_reason = FinishReason::kAborted;
  for (int times = 0; times < 5; ++times)  // more often than a prompt may fail
    say("a/1", HandBack{heard<Lease>("a/1").at(0).id, begun});
  const Lease lease = heard<Lease>("a/1").at(0);
  ASSERT_EQ(lease.partials.size(), 2u);
  EXPECT_THAT(lease.partials[0].token_ids, ElementsAre(3, 4));
}

TEST_F(HubTest, WhatAnEarlierTrainerAskedForIsRefused) {
  start();
  join("a/1");
  ask({0});
  hub->tick(now);
  const Lease lease = heard<Lease>("a/1").at(0);
  say("a/1", GroupResult{lease.id, 0, completions(0)}, 6);
  EXPECT_EQ(heard<Ack>("a/1").at(0).verdict, ResultVerdict::kOldEpoch);
  EXPECT_EQ(heard<Refusal>("a/1").at(0).reason, RefusalReason::kUnknownWorker);
  EXPECT_FALSE(hub->take());
}

TEST_F(HubTest, WhatNoStepCanTakeIsCancelled) {
  start();
  join("a/1");
  ask({0, 1, 2});
  hub->tick(now);
  EXPECT_EQ(heard<Lease>("a/1").size(), 3u);
  hub->publish(1);
  EXPECT_THAT(heard<CancelLease>("a/1"), IsEmpty());
  hub->publish(2);  // version 0 is two behind
  EXPECT_EQ(heard<CancelLease>("a/1").size(), 3u);
  EXPECT_EQ(hub->counters().num_dropped_stale, 3);
  EXPECT_THAT(hub->unended(), ElementsAre(0, 1, 2));
}

// With old weights it would be too old again; other prompts do not wait for it.
TEST_F(HubTest, WhatBecameTooOldIsBegunAnewWithTheNewestWeights) {
  const auto serials = [](const std::vector<Lease>& leases) {
    std::vector<int64_t> serials;
    for (const Lease& lease : leases) serials.push_back(lease.prompt.serial);
    return serials;
  };
  const auto take_step = [&](const std::string& route, std::vector<Lease> leases, PolicyVersion version) {
    for (const Lease& lease : leases) EXPECT_EQ(bring(route, lease, version), ResultVerdict::kAccepted);
    for (size_t i = 0; i < leases.size(); ++i) EXPECT_TRUE(hub->take());
    hub->publish(version + 1);
  };
  start();
  join("slow/1", 2);
  ask({0, 1, 2, 3, 4, 5, 6, 7});
  hub->tick(now);
  EXPECT_THAT(serials(heard<Lease>("slow/1")), ElementsAre(0, 1));
  join("fast/1", 2);
  take_step("fast/1", heard<Lease>("fast/1"), 0);
  say("fast/1", Heartbeat{1, 2, {}});
  take_step("fast/1", heard<Lease>("fast/1"), 1);
  EXPECT_EQ(heard<CancelLease>("slow/1").size(), 2u);  // version 0 is two behind
  EXPECT_EQ(hub->counters().num_dropped_stale, 2);
  say("fast/1", Heartbeat{1, 2, {}});
  const auto others = heard<Lease>("fast/1");
  EXPECT_THAT(serials(others), ElementsAre(6, 7));
  say("fast/1", Heartbeat{2, 4, {others[0].id, others[1].id}});
  const auto again = heard<Lease>("fast/1");
  EXPECT_THAT(serials(again), ElementsAre(0, 1));
  EXPECT_EQ(again.at(0).oldest_version, 2);
}

TEST_F(HubTest, EvaluationComesFirstAndFromTheNewestWeights) {
  start();
  join("a/1", 1);
  ask({0});
  ask({0}, RolloutPurpose::kEval);
  hub->tick(now);
  const Lease eval = heard<Lease>("a/1").at(0);
  EXPECT_EQ(eval.purpose, RolloutPurpose::kEval);
  EXPECT_TRUE(eval.exact);
  EXPECT_EQ(bring("a/1", eval, 0), ResultVerdict::kAccepted);
  EXPECT_EQ(bring("a/1", heard<Lease>("a/1").at(0), 0), ResultVerdict::kAccepted);
  EXPECT_EQ(hub->take()->purpose, RolloutPurpose::kEval);
  EXPECT_EQ(hub->take()->purpose, RolloutPurpose::kTrain);
}

TEST_F(HubTest, LoggedGroupsAreUsedInsteadOfGeneratingThemAgain) {
  LoggedGroup logged_group{6, 0, 0, completions(0)};
  Prompt prompt;
  prompt.serial = 0;
  prompt.token_ids = {0, 1};
  logged_group.prompt_hash = hash_prompt(prompt);
  LoggedGroup of_other_data{6, 1, 12345, completions(0)};
  hub.emplace(options(), 0, std::vector{logged_group, of_other_data}, [](const LoggedGroup&) { return true; });
  join("a/1");
  ask({0, 1});
  hub->tick(now);
  EXPECT_EQ(hub->counters().num_replayed, 1);
  EXPECT_EQ(hub->take()->prompt.serial, 0);
  EXPECT_EQ(heard<Lease>("a/1").at(0).prompt.serial, 1);
}

}  // namespace
}  // namespace temper
