// What `temper loss` prints. The same calls as in training, with one micro-batch that is the whole batch.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "algos/advantage.h"
#include "algos/algorithm.h"
#include "algos/kl.h"
#include "algos/loss_fixture.h"
#include "algos/vocabulary_divergence.h"
#include "core/error.h"

namespace temper {
namespace {

// A JSON object written field by field, numbers with 17 significant digits. Throws NumericsError for one that is not
// finite.
class Report {
 public:
  explicit Report(const LossBatch& batch) : batch_(batch), offsets_(batch.offsets()) {}

  void add(const std::string& name, double value) { field(name) += number(value, name); }
  void add_null(const std::string& name) { field(name) += "null"; }
  // [N] as [group][completion][token], [N, V] as [group][completion][token][V].
  void add(const std::string& name, const at::Tensor& per_token) {
    const at::Tensor numbers = per_token.detach().to(at::kCPU, at::kDouble).contiguous();
    const double* data = numbers.const_data_ptr<double>();
    const int64_t width = numbers.dim() == 2 ? numbers.size(1) : 0;
    std::string& out = field(name);
    int64_t i = 0;
    out += '[';
    for (int64_t g = 0; g < batch_.num_groups(); ++g) {
      out += g ? ",\n  [" : "\n  [";
      for (int64_t k = 0; k < batch_.group_sizes[g]; ++k, ++i) {
        out += k ? ", [" : "[";
        for (int64_t t = offsets_[i]; t < offsets_[i + 1]; ++t) {
          const auto place = [&] { return format("{}[{}][{}][{}]", name, g, k, t - offsets_[i]); };
          if (t > offsets_[i]) out += ", ";
          if (width == 0) {
            out += number(data[t], place);
            continue;
          }
          for (int64_t v = 0; v < width; ++v) out += (v ? ", " : "[") + number(data[t * width + v], place);
          out += ']';
        }
        out += ']';
      }
      out += ']';
    }
    out += "]";
  }
  void add(const std::string& name, const std::vector<std::pair<std::string, double>>& metrics) {
    std::string& out = field(name);
    out += '{';
    for (size_t k = 0; k < metrics.size(); ++k) {
      out += k ? ",\n  " : "\n  ";
      out += quoted(metrics[k].first) + ": " + number(metrics[k].second, "metrics." + metrics[k].first);
    }
    out += "}";
  }
  std::string finish() const { return text_ + "\n}\n"; }

 private:
  std::string& field(const std::string& name) {
    text_ += (text_.size() > 1 ? ",\n " : "\n ") + quoted(name) + ": ";
    return text_;
  }
  static std::string quoted(const std::string& name) {
    return nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  static std::string place_text(const std::string& place) { return place; }
  template <class Place>
  static std::string place_text(const Place& place) {
    return place();
  }
  template <class Place>
  static std::string number(double value, const Place& place) {
    if (!std::isfinite(value))
      throw NumericsError(
          "the result {} is {}: the numbers of the fixture overflow a double. Look for log-probabilities "
          "or rewards that are out of range.",
          place_text(place), value);
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.17g", value);
    return digits;
  }

  const LossBatch& batch_;
  const std::vector<int64_t> offsets_;
  std::string text_ = "{";
};

at::Tensor gradient_of(const at::Tensor& leaf) { return leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf); }

// Numbers where m = 0 change nothing, not even by overflowing.
at::Tensor counted_rows(const at::Tensor& logits, const at::Tensor& counted) {
  return logits.masked_fill(counted.logical_not().unsqueeze(-1), 0);
}

}  // namespace

std::string evaluate_loss_fixture(LossFixture& fixture) {
  const AlgoSection& settings = fixture.settings;
  LossBatch& batch = fixture.batch;
  const auto algorithm = make_algorithm(settings, fixture.context);
  const AdvantageReport report = algorithm->advantages(batch);
  const GlobalCounts counts = global_counts(batch);
  if (algorithm->needs_prepare()) algorithm->prepare(batch, fixture.policy_logprobs.detach(), nullptr);

  PolicyOutput output{fixture.policy_logprobs, fixture.entropies, fixture.values, {}};
  const bool distills = settings.distill_loss != DistillLoss::kNone;
  if (distills)
    output.divergence = vocabulary_divergence(counted_rows(fixture.policy_logits, batch.counted),
                                              counted_rows(fixture.teacher_logits, batch.counted), settings);
  const LossResult result = algorithm->loss(output, batch, counts);
  if (result.loss.requires_grad()) result.loss.backward();

  std::vector<std::pair<std::string, double>> metrics = report.metrics;
  for (const auto& entry : result.metrics.results())
    if (entry.first != "loss" && entry.first != "policy_loss" && entry.first != "value_loss") metrics.push_back(entry);
  const std::optional<double> current = current_kl(report, result.metrics);
  if (current) {
    metrics.emplace_back("kl_coef", algorithm->kl_coef());
    metrics.emplace_back("kl_coef_next",
                         next_kl_coef(settings, algorithm->kl_coef(), *current, counts.num_completions));
  }

  Report out(batch);
  out.add("loss", result.metrics.result("loss"));
  out.add("policy_loss", result.metrics.result("policy_loss"));
  out.add("value_loss", result.metrics.result("value_loss"));
  out.add("kl", report.kl.value_or(result.metrics.result(kKlTermMetric)));
  out.add("advantages", batch.advantages);
  batch.returns.defined() ? out.add("returns", batch.returns) : out.add_null("returns");
  fixture.policy_logprobs.defined() ? out.add("grad_policy_logprobs", gradient_of(fixture.policy_logprobs))
                                    : out.add_null("grad_policy_logprobs");
  const bool has_values =
      settings.adv_estimator == AdvEstimator::kGae || settings.policy_loss == PolicyLoss::kRewardModel;
  has_values ? out.add("grad_values", gradient_of(fixture.values)) : out.add_null("grad_values");
  if (distills) {
    out.add("distill_loss", result.metrics.result(kDistillTermMetric));
    out.add("grad_policy_logits", gradient_of(fixture.policy_logits));
  }
  out.add("metrics", metrics);
  return out.finish();
}

}  // namespace temper
