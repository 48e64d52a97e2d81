// The loss of a mini-batch must not depend on how it is cut into micro-batches, nor on the order of groups: every case
// of data/loss_fixtures.json, cut at random.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "algos/algorithm.h"
#include "algos/loss_fixture.h"
#include "algos/vocabulary_divergence.h"
#include "core/rng.h"

namespace temper {
namespace {

using Indices = std::vector<int64_t>;

void shuffle(Indices* items, SplitMix64& rng) {
  for (size_t i = items->size(); i > 1; --i)
    std::swap((*items)[i - 1], (*items)[rng.in_range(0, static_cast<int64_t>(i) - 1)]);
}

std::vector<Indices> groups_of(const LossBatch& batch) {
  std::vector<Indices> groups;
  int64_t next = 0;
  for (const int64_t size : batch.group_sizes) {
    groups.emplace_back(size);
    std::iota(groups.back().begin(), groups.back().end(), next);
    next += size;
  }
  return groups;
}

Indices tokens_of(const LossBatch& batch, const Indices& completions) {
  const Indices offsets = batch.offsets();
  Indices tokens;
  for (const int64_t i : completions)
    for (int64_t t = offsets[i]; t < offsets[i + 1]; ++t) tokens.push_back(t);
  return tokens;
}

struct Evaluated {
  double loss = 0;
  MetricSums metrics;
  std::vector<at::Tensor> gradients;  // of the leaves, over the whole batch
};

struct Case {
  LossFixture fixture;
  std::unique_ptr<Algorithm> algorithm;
  AdvantageReport report;
  GlobalCounts counts;

  explicit Case(LossFixture f) : fixture(std::move(f)), algorithm(make_algorithm(fixture.settings, fixture.context)) {
    report = algorithm->advantages(fixture.batch);
    counts = global_counts(fixture.batch);
    if (algorithm->needs_prepare()) algorithm->prepare(fixture.batch, fixture.policy_logprobs.detach(), nullptr);
  }

  // Sum over the parts, each a list of completions.
  Evaluated evaluate(const std::vector<Indices>& parts, at::ScalarType dtype) const {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& leaf : {fixture.policy_logprobs, fixture.values, fixture.policy_logits})
      leaves.push_back(leaf.defined() ? leaf.detach().to(dtype).clone().set_requires_grad(true) : leaf);
    Evaluated result;
    for (const Indices& part : parts) {
      const at::Tensor tokens = at::tensor(tokens_of(fixture.batch, part), at::kLong);
      const auto take = [&](const at::Tensor& x) { return x.defined() ? x.index_select(0, tokens) : x; };
      PolicyOutput output{take(leaves[0]), {}, take(leaves[1]), {}};
      if (fixture.entropies.defined()) output.entropies = take(fixture.entropies.to(dtype));
      if (fixture.settings.distill_loss != DistillLoss::kNone)
        output.divergence =
            vocabulary_divergence(take(leaves[2]), take(fixture.teacher_logits.to(dtype)), fixture.settings);
      const LossResult loss = algorithm->loss(output, fixture.batch.select(part).to(at::kCPU, dtype), counts);
      if (loss.loss.requires_grad()) loss.loss.backward();
      result.loss += loss.loss.item<double>();
      result.metrics.merge(loss.metrics);
    }
    for (const at::Tensor& leaf : leaves)
      if (leaf.defined()) result.gradients.push_back(leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf));
    return result;
  }

  Indices all() const {
    Indices completions(fixture.batch.num_completions());
    std::iota(completions.begin(), completions.end(), 0);
    return completions;
  }
  // Whole groups stay together where the loss compares them.
  std::vector<Indices> random_parts(SplitMix64& rng) const {
    std::vector<Indices> units = groups_of(fixture.batch);
    if (!is_preference_loss(fixture.settings.policy_loss)) {
      Indices completions = all();
      shuffle(&completions, rng);
      units.clear();
      for (const int64_t i : completions) units.push_back({i});
    }
    std::vector<Indices> parts(1);
    for (const Indices& unit : units) {
      if (!parts.back().empty() && rng.in_range(0, 1) == 1) parts.emplace_back();
      parts.back().insert(parts.back().end(), unit.begin(), unit.end());
    }
    return parts;
  }
};

// |x - y| <= tolerance * size of the value
void expect_close(const Evaluated& x, const Evaluated& y, double tolerance, const std::string& name) {
  EXPECT_NEAR(x.loss, y.loss, tolerance * (1 + std::abs(y.loss))) << name;
  ASSERT_EQ(x.gradients.size(), y.gradients.size());
  for (size_t k = 0; k < x.gradients.size(); ++k) {
    const double size = y.gradients[k].norm().item<double>();
    EXPECT_LE((x.gradients[k] - y.gradients[k]).norm().item<double>(), tolerance * (1e-6 + size))
        << name << " gradient " << k;
  }
  for (const MetricSum& entry : y.metrics.entries())
    EXPECT_NEAR(x.metrics.result(entry.name), entry.result(), tolerance * (1 + std::abs(entry.result())))
        << name << " " << entry.name;
}

std::vector<std::pair<std::string, std::string>> fixtures() {
  std::ifstream file(TEMPER_TEST_DATA "/loss_fixtures.json");
  std::vector<std::pair<std::string, std::string>> result;
  for (const auto& entry : nlohmann::json::parse(file))
    result.emplace_back(entry["name"].get<std::string>(), entry["fixture"].dump());
  return result;
}

void check_splits(at::ScalarType dtype, double tolerance) {
  SplitMix64 rng(7);
  for (const auto& [name, text] : fixtures()) {
    const Case c(parse_loss_fixture(text));
    const Evaluated whole = c.evaluate({c.all()}, dtype);
    for (int repeat = 0; repeat < 2; ++repeat)
      expect_close(c.evaluate(c.random_parts(rng), dtype), whole, tolerance, name);
  }
}

TEST(Invariance, MicroBatchesAddUpToTheMiniBatchInF64) { check_splits(at::kDouble, 1e-9); }

TEST(Invariance, MicroBatchesAddUpToTheMiniBatchInF32) { check_splits(at::kFloat, 1e-5); }

TEST(Invariance, TheOrderOfGroupsDoesNotMatter) {
  SplitMix64 rng(11);
  for (const auto& [name, text] : fixtures()) {
    const LossFixture fixture = parse_loss_fixture(text);
    std::vector<Indices> groups = groups_of(fixture.batch);
    Indices order(groups.size());
    std::iota(order.begin(), order.end(), 0);
    shuffle(&order, rng);
    Indices completions;
    for (const int64_t g : order) completions.insert(completions.end(), groups[g].begin(), groups[g].end());

    LossFixture moved = fixture;
    moved.batch = fixture.batch.select(completions);
    const at::Tensor tokens = at::tensor(tokens_of(fixture.batch, completions), at::kLong);
    const auto move = [&](at::Tensor& x) {
      if (x.defined()) x = x.detach().index_select(0, tokens);
    };
    for (at::Tensor* x :
         {&moved.policy_logprobs, &moved.values, &moved.policy_logits, &moved.teacher_logits, &moved.entropies})
      move(*x);

    const Case here(fixture), there(moved);
    const Evaluated a = here.evaluate({here.all()}, at::kDouble);
    Evaluated b = there.evaluate({there.all()}, at::kDouble);
    for (at::Tensor& gradient : b.gradients) gradient = at::zeros_like(gradient).index_copy(0, tokens, gradient);
    expect_close(b, a, 1e-9, name);
    const at::Tensor advantages = there.fixture.batch.advantages;
    EXPECT_LE((at::zeros_like(advantages).index_copy(0, tokens, advantages) - here.fixture.batch.advantages)
                  .abs()
                  .max()
                  .item<double>(),
              1e-9)
        << name;
    for (size_t k = 0; k < here.report.metrics.size(); ++k) {
      const auto& [metric, value] = here.report.metrics[k];
      EXPECT_NEAR(there.report.metrics[k].second, value, 1e-9 * (1 + std::abs(value))) << name << " " << metric;
    }
  }
}

TEST(Invariance, WithoutOldLogprobsThePolicysOwnAreTakenAsConstants) {
  for (const auto& [name, text] : fixtures()) {
    LossFixture given = parse_loss_fixture(text);
    if (!given.policy_logprobs.defined() || needs_old_before_loss(given.settings)) continue;
    LossFixture left_out = given;
    given.batch.old_logprobs = given.policy_logprobs.detach().clone();
    left_out.batch.old_logprobs = at::Tensor();
    const Case a(std::move(given)), b(std::move(left_out));
    const Evaluated whole = a.evaluate({a.all()}, at::kDouble);
    Evaluated other = b.evaluate({b.all()}, at::kDouble);
    expect_close(other, whole, 1e-12, name);
  }
}

}  // namespace
}  // namespace temper
