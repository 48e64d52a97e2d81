// A stage's course on several ranks, threads of this process, beside that of one: what the tests of ranks and of tensor
// parallelism share.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/comm/thread_ranks.h"
#include "tests/trainer/loop_fixture.h"

namespace temper {

constexpr int kSteps = 20;

struct Course {
  std::vector<MetricRecord> records;
  at::Tensor before, after;  // the weights
};

// The ranks of a world, in groups.
struct World {
  int ranks = 1;
  int64_t replicas = 1, tensor_parallel = 1;
};

using Change = std::function<void(StageConfig&)>;
inline void shard_the_optimizer(StageConfig& s) { s.train.shard = Shard::kOptimizer; }
inline void shard_everything(StageConfig& s) {
  s.train.shard = Shard::kFull;
  s.train.max_tokens_per_micro_batch = 24;  // several passes, not equally many on all ranks
}
using Shape = std::function<void(ModelInit&)>;  // of the tiny model

inline Course train(Preset preset, const Change& change, const Ranks& ranks, const Shape& shape = {}) {
  // A rate at which a tiny model's course does not blow up rounding: sums over ranks are added up in another order.
  Fixture fixture(
      preset,
      [&change](StageConfig& s) {
        s.optim.learning_rate = 3e-4;
        if (change) change(s);
      },
      ranks, at::kCPU, shape);
  const auto weights = [&fixture] {
    const FlatParameters whole(fixture.policy->config());
    fixture.policy->visit_masters([&](int64_t block, const FlatParameters& masters) {
      for (const ParameterSpec& spec : segment_layout(fixture.policy->config(), block))
        whole[spec.name].copy_(masters[spec.name]);
    });
    return whole.flat();
  };
  Course course;
  course.before = weights();
  const bool pairs = is_preference_loss(fixture.config.algo.policy_loss);
  const int64_t size = pairs ? 2 : fixture.config.algo.trains_on_rollouts() ? 4 : 1;
  TrainLoopParts parts = fixture.parts([&fixture, size](int64_t first, int64_t count) {
    return fixture.groups(first, count, size, first_token_reward);
  });
  parts.ranks = ranks;
  TrainLoop loop(std::move(parts), {});
  for (int step = 0; step < kSteps; ++step) course.records.push_back(loop.step().record);
  course.after = weights();
  return course;
}

// One course a rank.
inline std::vector<Course> train_on(const World& size, Preset preset, const Change& change, const Shape& shape = {}) {
  std::vector<Course> courses(static_cast<size_t>(size.ranks));
  // Comparing every call costs more than the calls of shared layers, of which there are many.
  const CommOptions options{.timeout = std::chrono::seconds(60), .check_agreement = size.tensor_parallel == 1};
  on_thread_ranks(size.ranks, options, [&](Communicator& comm) {
    const Ranks ranks = Ranks(comm).with_tensor_parallel(size.tensor_parallel).with_replicas(size.replicas);
    courses[static_cast<size_t>(comm.rank())] = train(preset, change, ranks, shape);
  });
  return courses;
}

inline double number(const MetricRecord& record, const char* name) { return *record.find(name); }

struct Case {
  const char* name;
  Preset preset;
  Change change;
  Shape shape = {};
};

inline void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

inline void expect_as_alone(const Case& test, const std::vector<World>& worlds) {
  const Course alone = train(test.preset, test.change, {}, test.shape);
  const double moved = (alone.after - alone.before).norm().item<double>();
  for (const World& world : worlds) {
    const std::vector<Course> courses = train_on(world, test.preset, test.change, test.shape);
    for (const Course& course : courses) {
      ASSERT_EQ(course.records.size(), alone.records.size());
      for (size_t step = 0; step < alone.records.size(); ++step) {
        const double expected = number(alone.records[step], "loss");
        EXPECT_NEAR(number(course.records[step], "loss"), expected, 1e-5 * std::max(std::abs(expected), 0.1))
            << test.name << ", " << world.ranks << " ranks, " << world.replicas << " replicas, "
            << world.tensor_parallel << " to a layer, step " << step;
      }
      EXPECT_LE((course.after - alone.after).norm().item<double>(), 1e-3 * moved) << test.name;
      EXPECT_TRUE(at::equal(course.after, courses.front().after)) << "ranks differ";
    }
  }
}

}  // namespace temper
