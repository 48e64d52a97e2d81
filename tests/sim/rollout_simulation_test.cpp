// TEMPER_SIM_SCHEDULES=1000000 sim_test --gtest_filter=RolloutSimulation.* runs as many schedules; TEMPER_SIM_SEED=n
// one.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/sim/sim_world.h"

namespace temper::sim {
namespace {

int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoll(text);
}

TEST(RolloutSimulation, EveryPromptEndsOnceWhateverFails) {
  const int64_t only = number_from("TEMPER_SIM_SEED", -1);
  const int64_t first = only >= 0 ? only : number_from("TEMPER_SIM_FIRST", 0);
  const int64_t count = only >= 0 ? 1 : number_from("TEMPER_SIM_SCHEDULES", 20'000);
  Outcome sum;
  for (int64_t seed = first; seed < first + count; ++seed) {
    try {
      const Outcome outcome = World(static_cast<uint64_t>(seed), {}).run();
      sum.num_events += outcome.num_events;
      sum.num_steps += outcome.num_steps;
      sum.num_restarts += outcome.num_restarts;
      sum.hub.num_replayed += outcome.hub.num_replayed;
      sum.hub.num_reissued += outcome.hub.num_reissued;
      sum.hub.num_continued += outcome.hub.num_continued;
      sum.hub.num_failed += outcome.hub.num_failed;
      sum.hub.num_dropped_stale += outcome.hub.num_dropped_stale;
      for (int v = 0; v < 6; ++v) sum.hub.num_results_refused[v] += outcome.hub.num_results_refused[v];
    } catch (const std::exception& error) {
      FAIL() << error.what() << "\nagain: TEMPER_SIM_SEED=" << seed << " sim_test";
    }
  }
  const auto refused = [&](ResultVerdict verdict) { return sum.hub.num_results_refused[static_cast<size_t>(verdict)]; };
  std::printf(
      "%ld schedules: %ld events, %ld steps, %ld trainer restarts; of the last hubs: %ld groups replayed, %ld "
      "leases re-issued, %ld continued, %ld prompts failed, %ld groups dropped as stale; results refused: %ld "
      "duplicate, %ld late, %ld of an old epoch, %ld too stale, %ld invalid\n",
      count, sum.num_events, sum.num_steps, sum.num_restarts, sum.hub.num_replayed, sum.hub.num_reissued,
      sum.hub.num_continued, sum.hub.num_failed, sum.hub.num_dropped_stale, refused(ResultVerdict::kDuplicate),
      refused(ResultVerdict::kLate), refused(ResultVerdict::kOldEpoch), refused(ResultVerdict::kTooStale),
      refused(ResultVerdict::kInvalid));
  if (count < 1000) return;
  // The schedules went where they should.
  EXPECT_GT(sum.num_restarts, 0);
  EXPECT_GT(sum.hub.num_replayed, 0);
  EXPECT_GT(sum.hub.num_continued, 0);
  EXPECT_GT(sum.hub.num_failed, 0);
  EXPECT_GT(sum.hub.num_dropped_stale, 0);
  for (const auto verdict :
       {ResultVerdict::kDuplicate, ResultVerdict::kLate, ResultVerdict::kOldEpoch, ResultVerdict::kInvalid})
    EXPECT_GT(refused(verdict), 0) << static_cast<int>(verdict);
}

TEST(RolloutSimulation, OneSeedIsOneSchedule) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Outcome once = World(seed, {}).run(), again = World(seed, {}).run();
    EXPECT_EQ(once.num_events, again.num_events) << seed;
    EXPECT_EQ(once.hub.num_accepted, again.hub.num_accepted) << seed;
  }
}

struct Mutant {
  const char* name;
  bool RolloutRules::*rule;
};

void PrintTo(const Mutant& mutant, std::ostream* out) { *out << mutant.name; }

class RolloutMutant : public testing::TestWithParam<Mutant> {};

// Each rule that is switched off is noticed.
TEST_P(RolloutMutant, IsCaught) {
  RolloutRules rules;
  rules.*GetParam().rule = false;
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    try {
      World(seed, rules).run();
    } catch (const std::exception& error) {  // a Violation, or a check of the hub's own
      std::printf("after %lu schedules: %s\n", seed + 1, error.what());
      return;
    }
  }
  FAIL() << "20,000 schedules without rule " << GetParam().name << " went well";
}

// Not among them: bound_by_staleness and drop_old_partials. Other rules hold what they hold (each lease's oldest
// version; the check of a result's versions): 20,000 schedules go well without them.
#define TEMPER_MUTANT(name) \
  Mutant { #name, &RolloutRules::name }
INSTANTIATE_TEST_SUITE_P(
    Without, RolloutMutant,
    testing::Values(TEMPER_MUTANT(same_build), TEMPER_MUTANT(same_model), TEMPER_MUTANT(same_config),
                    TEMPER_MUTANT(fence_epochs), TEMPER_MUTANT(result_ends_lease), TEMPER_MUTANT(timeout_ends_lease),
                    TEMPER_MUTANT(requeue_late), TEMPER_MUTANT(requeue_of_lost_worker),
                    TEMPER_MUTANT(requeue_handed_back), TEMPER_MUTANT(requeue_dropped), TEMPER_MUTANT(requeue_unnamed),
                    TEMPER_MUTANT(bound_attempts), TEMPER_MUTANT(check_result_versions),
                    TEMPER_MUTANT(check_result_shape), TEMPER_MUTANT(fresh_workers_only), TEMPER_MUTANT(log_before_ack),
                    TEMPER_MUTANT(bound_by_running), TEMPER_MUTANT(check_at_consumption), TEMPER_MUTANT(uncount_ended),
                    TEMPER_MUTANT(keep_slots), TEMPER_MUTANT(replay_own_history), TEMPER_MUTANT(drop_old_weights),
                    TEMPER_MUTANT(drop_old_leases), TEMPER_MUTANT(start_leases_once), TEMPER_MUTANT(wait_for_swap),
                    TEMPER_MUTANT(say_hello_again)),
    [](const auto& mutant) { return std::string(mutant.param.name); });

}  // namespace
}  // namespace temper::sim
