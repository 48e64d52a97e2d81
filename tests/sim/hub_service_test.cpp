// The hub as a service, over real sockets, with workers that draw nothing: what lies between the state machines, which
// rollout_simulation_test.cpp drives, and the program, which tests/e2e/workers_test.py does.
#include "trainer/hub_service.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <numeric>
#include <set>

#include "core/error.h"
#include "rollout/simulated_worker.h"
#include "trainer/prompt_feed.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr auto kSoon = std::chrono::seconds(20);  // for what must come

ChannelSettings plain() {
  ChannelSettings settings;
  settings.allow_plain_text = true;
  return settings;
}

// A worker whose completions are the prompt's serial.
class Parrot {
 public:
  Parrot(const std::string& hub, const std::string& name)
      : worker_({{.worker = {.name = name, .build = "b1", .model = "m1", .config = "c1"},
                  .hub = hub,
                  .keys = std::nullopt,
                  .channel = plain()}}) {}

 private:
  SimulatedWorkers worker_;
};

class HubServiceTest : public testing::Test {
 protected:
  HubServiceTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "temper-hub-XXXXXX").string();
    folder = mkdtemp(pattern.data());
  }
  ~HubServiceTest() override { std::filesystem::remove_all(folder); }

  std::unique_ptr<HubService> serve(int64_t max_staleness, PolicyVersion version = 0) const {
    HubServiceOptions options;
    options.address = "tcp://127.0.0.1:*";
    options.channel = plain();
    options.hub.build = "b1";
    options.hub.model = "m1";
    options.hub.config = "c1";
    options.hub.num_rewards = 1;
    options.hub.staleness = {.max_staleness = max_staleness, .groups_per_step = 2};
    options.log_path = folder + "/groups.log";
    return std::make_unique<HubService>(std::move(options), version);
  }
  static PromptFeed feed(HubSource& source, int64_t max_staleness, int64_t cursor = 0,
                         const std::vector<int64_t>& unended = {}) {
    const auto prompt_of = [](int64_t serial) {
      Prompt prompt;
      prompt.token_ids = {static_cast<int32_t>(serial)};
      return prompt;
    };
    return {source,
            prompt_of,
            {.groups_per_step = 2, .max_staleness = max_staleness, .num_completions = 3},
            cursor,
            unended};
  }
  static std::vector<int64_t> serials(const std::vector<RolloutGroup>& groups) {
    std::vector<int64_t> all;
    for (const RolloutGroup& group : groups) {
      all.push_back(group.prompt.serial);
      EXPECT_EQ(group.completions.size(), 3u);
      for (const Completion& completion : group.completions)
        EXPECT_THAT(completion.token_ids, ElementsAre(static_cast<int32_t>(group.prompt.serial)));
    }
    std::sort(all.begin(), all.end());
    return all;
  }
  static bool wait_for(const std::function<bool()>& happens) {
    for (const auto deadline = Clock::now() + kSoon; Clock::now() < deadline;) {
      if (happens()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  std::string folder;
};

TEST_F(HubServiceTest, OnPolicyStepsGetThePromptsInOrder) {
  const auto service = serve(0);
  HubSource source(service.get(), {}, [] {});
  PromptFeed prompts = feed(source, 0);
  const Parrot a(service->address(), "a"), b(service->address(), "b");
  for (int64_t step = 0; step < 5; ++step) {
    const auto groups = prompts.take(2);
    EXPECT_THAT(serials(groups), ElementsAre(2 * step, 2 * step + 1));
    for (const RolloutGroup& group : groups)
      EXPECT_THAT(group.completions[0].policy_versions, ElementsAre(PolicyVersion{step}));
    EXPECT_THAT(prompts.unended(), IsEmpty());
    prompts.step_done();
    service->publish(step + 1);
  }
  EXPECT_EQ(prompts.cursor(), 10);
  EXPECT_EQ(service->counters().num_consumed, 10);
}

TEST_F(HubServiceTest, AStepThatAsksAgainGetsOthersForThoseThatTaughtNothing) {
  const auto service = serve(0);
  HubSource source(service.get(), {}, [] {});
  PromptFeed prompts = feed(source, 0);
  const Parrot worker(service->address(), "a");
  EXPECT_THAT(serials(prompts.take(2)), ElementsAre(0, 1));
  EXPECT_THAT(serials(prompts.take(2)), ElementsAre(2, 3));  // both were alike
  EXPECT_THAT(serials(prompts.take(1)), ElementsAre(4));
  EXPECT_EQ(service->counters().num_filtered, 3);
  prompts.step_done();
  service->publish(1);
  EXPECT_THAT(serials(prompts.take(2)), ElementsAre(5, 6));
}

TEST_F(HubServiceTest, AStopEndsTheWaitForGroupsAndNoneIsLost) {
  std::atomic<bool> stop = false;
  const auto serve_and_stop = [&](int64_t max_staleness, std::chrono::milliseconds patience, const auto& act) {
    const auto service = serve(max_staleness);
    HubSource source(
        service.get(), {}, [] {}, [&stop] { return stop.load(); }, patience);
    PromptFeed prompts = feed(source, max_staleness);
    stop = false;
    act(prompts, *service);
  };
  // A refill finds nobody: what was taken for the step is owed as the rest is.
  const auto take_one_and_stop = [&](PromptFeed& prompts, HubService& service) {
    {
      const Parrot worker(service.address(), "a");
      EXPECT_THAT(serials(prompts.take(2)), ElementsAre(0, 1));
    }
    stop = true;
    EXPECT_THROW(while (true) prompts.take(1), StoppedWaiting);
  };
  serve_and_stop(0, std::chrono::milliseconds(20), [&](PromptFeed& prompts, HubService& service) {
    take_one_and_stop(prompts, service);
    EXPECT_EQ(prompts.cursor(), 0);  // the step begins anew
    EXPECT_THAT(prompts.unended(), IsEmpty());
  });
  // Without workers it does not wait for them.
  serve_and_stop(1, std::chrono::hours(1), [&](PromptFeed& prompts, HubService& service) {
    take_one_and_stop(prompts, service);
    std::vector<int64_t> all(static_cast<size_t>(prompts.cursor()));
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(prompts.unended(), all);
  });
}

TEST_F(HubServiceTest, WorkersRunAheadAsFarAsStalenessAllows) {
  const auto service = serve(1);
  HubSource source(service.get(), {}, [] {});
  PromptFeed prompts = feed(source, 1);
  const Parrot worker(service->address(), "a");
  EXPECT_EQ(prompts.take(2).size(), 2u);
  // (1 + 0 + 1) * 2 groups may be begun before the first step is taken, then two more.
  ASSERT_TRUE(wait_for([&] { return service->counters().num_accepted == 4; }));
  EXPECT_EQ(service->num_leases(), 0);
  prompts.step_done();
  service->publish(1);
  ASSERT_TRUE(wait_for([&] { return service->counters().num_accepted == 6; }));
  EXPECT_EQ(prompts.cursor(), 6);  // two taken, and a step more than may be begun
  EXPECT_EQ(prompts.unended().size(), 4u);
}

TEST_F(HubServiceTest, ATrainerThatStartsAgainUsesWhatWasFinishedAndLosesNothing) {
  std::vector<int64_t> unended;
  int64_t cursor = 0, epoch = 0;
  std::set<int64_t> seen;
  {
    const auto service = serve(1);
    HubSource source(service.get(), {}, [] {});
    PromptFeed prompts = feed(source, 1);
    const Parrot worker(service->address(), "a");
    for (const int64_t serial : serials(prompts.take(2))) seen.insert(serial);
    ASSERT_TRUE(wait_for([&] { return service->counters().num_accepted == 4; }));
    unended = prompts.unended();  // a checkpoint of version 0 with these two taken
    service->trim_log([&](int64_t serial) { return std::count(unended.begin(), unended.end(), serial) > 0; });
    cursor = prompts.cursor();
    epoch = service->epoch();
  }
  const auto service = serve(1);
  EXPECT_GT(service->epoch(), epoch);
  HubSource source(service.get(), {}, [] {});
  PromptFeed prompts = feed(source, 1, cursor, unended);
  for (const int64_t serial : serials(prompts.take(2))) EXPECT_TRUE(seen.insert(serial).second);  // without a worker
  EXPECT_EQ(service->counters().num_replayed, 2);
  prompts.step_done();
  service->publish(1);
  const Parrot worker(service->address(), "a");
  for (int64_t step = 1; step < 4; ++step) {
    for (const int64_t serial : serials(prompts.take(2))) EXPECT_TRUE(seen.insert(serial).second);
    prompts.step_done();
    service->publish(step + 1);
  }
  EXPECT_EQ(*std::next(seen.begin(), 5), 5);  // the first ones asked for are all there
}

TEST_F(HubServiceTest, AWorkerThatIsGoneIsMissedAtOnce) {
  const auto service = serve(0);
  {
    const Parrot worker(service->address(), "a");
    ASSERT_TRUE(wait_for([&] { return service->num_workers() == 1; }));
  }
  EXPECT_TRUE(wait_for([&] { return service->num_workers() == 0; }));
}

TEST_F(HubServiceTest, ATrainerThatNobodyCanHelpIsTold) {
  const auto service = serve(0);
  HubSource source(service.get(), {}, [] { throw ConfigError("nobody comes"); });
  PromptFeed prompts = feed(source, 0);
  EXPECT_THROW(prompts.take(2), ConfigError);
}

TEST_F(HubServiceTest, BytesThatAreNoMessageEndTheirConnectionAlone) {
  const auto service = serve(0);
  const Parrot worker(service->address(), "a");
  ChannelClient liar(service->address(), std::nullopt, plain());
  bool closed = false;
  for (const auto deadline = Clock::now() + kSoon; !closed && Clock::now() < deadline;) {
    const auto message = liar.receive(Clock::now() + std::chrono::milliseconds(50));
    if (message && message->type == kOpened) liar.send(kFirstApplicationType, "these are no 32 bytes of a header");
    closed = message && message->type == kClosed;
  }
  EXPECT_TRUE(closed);
  ASSERT_TRUE(wait_for([&] { return service->num_workers() == 1; }));
}

}  // namespace
}  // namespace temper
