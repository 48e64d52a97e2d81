#include "observe/report_charts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/format.h"

namespace temper {
namespace {

constexpr int64_t kMaxPoints = 400;
constexpr size_t kSmoothedFrom = 40;  // points from which a line gets a moving average

enum Style : unsigned { kPlain = 0, kPercent = 1, kFromZero = 2, kStacked = 4, kMarkers = 8, kSmooth = 16 };

struct Panel {
  const char* title;
  std::vector<const char*> metrics;  // a * stands for any text
  unsigned style = kPlain;
  const char* low = nullptr;  // metrics of a band around the first line
  const char* high = nullptr;
};

const std::vector<Panel>& panels() {
  static const std::vector<Panel> all = {
      {"Reward", {"reward"}, kSmooth},
      {"Rewards by function", {"rewards/*/mean"}, kSmooth},
      {"Held-out accuracy", {"eval/*/accuracy", "eval/*/avg@*", "eval/*/pass@*"}, kPercent | kMarkers},
      {"Held-out pairs: the chosen one preferred", {"eval/*/pair_accuracy"}, kPercent | kMarkers},
      {"Held-out loss", {"eval/*/loss"}, kMarkers},
      {"Loss", {"loss", "policy_loss"}, kSmooth},
      {"Pairs of the step: the chosen one preferred", {"rewards/accuracies"}, kPercent | kSmooth},
      {"Implicit or modelled reward of a pair", {"rewards/margins", "rewards/chosen", "rewards/rejected"}, kSmooth},
      {"Value loss of the critic", {"value_loss"}, kFromZero | kSmooth},
      {"Explained variance of the returns", {"explained_variance"}, kSmooth},
      {"KL to the reference", {"kl"}, kFromZero | kSmooth},
      {"KL coefficient", {"kl_coef"}, kFromZero},
      {"Distance to the teacher (nats a token)", {"teacher_kl", "distill_loss"}, kFromZero | kSmooth},
      {"Entropy", {"entropy"}, kFromZero | kSmooth},
      {"Completion length (tokens)",
       {"completions/mean_length"},
       kFromZero,
       "completions/min_length",
       "completions/max_length"},
      {"Completions cut at the length limit", {"completions/clipped_ratio"}, kPercent | kFromZero},
      {"Groups without spread in reward", {"frac_reward_zero_std"}, kPercent | kFromZero},
      {"Groups replaced for want of spread", {"training/groups_filtered", "training/refills"}, kFromZero | kSmooth},
      {"Gradient norm", {"grad_norm", "critic/grad_norm"}, kFromZero | kSmooth},
      {"Learning rate", {"learning_rate"}, kFromZero},
      {"Rollout against training log-probabilities",
       {"sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"},
       kFromZero},
      {"Importance ratio",
       {"sampling/importance_sampling_ratio/mean"},
       kPlain,
       "sampling/importance_sampling_ratio/min",
       "sampling/importance_sampling_ratio/max"},
      {"Clipped tokens",
       {"clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"},
       kPercent | kFromZero},
      {"Staleness (versions)",
       {"training/off_policy/trajectory_staleness/mean"},
       kFromZero,
       "training/off_policy/trajectory_staleness/min",
       "training/off_policy/trajectory_staleness/max"},
      {"Bits per character of held-out text", {"eval/*/bits_per_char"}, kMarkers},
      {"Throughput (tokens/s)", {"perf/throughput", "perf/rollout_tokens_per_s"}, kFromZero | kSmooth},
      {"Where the time goes (s a step)",
       {"timing_s/data", "timing_s/gen", "timing_s/reward", "timing_s/old_log_prob", "timing_s/ref", "timing_s/teacher",
        "timing_s/values", "timing_s/update_actor", "timing_s/update_weights", "timing_s/save_checkpoint_blocked",
        "timing_s/wait_for_groups"},
       kStacked | kFromZero},
      {"Memory (GB)", {"perf/max_memory_allocated_gb"}, kFromZero},
      {"Idle share", {"async/*/idle_ratio"}, kPercent | kFromZero},
  };
  return all;
}

bool matches(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  name.remove_prefix(star);
  for (size_t skip = 1; skip <= name.size(); ++skip)
    if (matches(pattern.substr(star + 1), name.substr(skip))) return true;
  return false;
}

struct Extremes {
  size_t count = 0;
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
};
Extremes extremes(const std::vector<double>& values) {
  Extremes found;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    ++found.count;
    found.low = std::min(found.low, value);
    found.high = std::max(found.high, value);
  }
  return found;
}

Extremes extremes(const std::vector<ChartSeries>& all) {
  Extremes found;
  for (const ChartSeries& series : all) {
    const Extremes part = extremes(series.y);
    found.count += part.count;
    found.low = std::min(found.low, part.low);
    found.high = std::max(found.high, part.high);
  }
  return found;
}

// Where an axis of shares ends: at all, unless that would press a hard task's few per cent onto the bottom.
double share_axis(double highest) {
  for (const double end : {0.05, 0.1, 0.2, 0.5})
    if (highest <= 0.8 * end) return end;
  return 1;
}

bool always_zero(const std::vector<double>& values) {
  const Extremes found = extremes(values);
  return found.low == 0 && found.high == 0;
}

// Records without the metric (evaluations between steps, steps between evaluations) leave no gap; a null does.
ChartSeries series_of(const StageLog& stage, const std::string& metric, int colour) {
  ChartSeries series;
  series.name = metric;
  series.colour = colour;
  for (const MetricRecord& record : stage.records)
    if (const double* value = record.find(metric)) {
      series.x.push_back(static_cast<double>(record.step));
      series.y.push_back(*value);
    }
  return series;
}

// Centred moving average over about a twentieth of the line.
ChartSeries smoothed(const ChartSeries& series) {
  ChartSeries smooth = series;
  smooth.low.clear(), smooth.high.clear();
  const auto size = static_cast<int64_t>(series.y.size());
  const int64_t reach = std::max<int64_t>(2, size / 40);
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0, count = 0;
    for (int64_t j = std::max<int64_t>(0, i - reach); j <= std::min(size - 1, i + reach); ++j)
      if (std::isfinite(series.y[static_cast<size_t>(j)])) {
        sum += series.y[static_cast<size_t>(j)];
        ++count;
      }
    if (std::isfinite(series.y[static_cast<size_t>(i)])) smooth.y[static_cast<size_t>(i)] = sum / count;
  }
  return smooth;
}

std::vector<std::string> metrics_of(const Panel& panel, const std::vector<std::string>& present) {
  std::vector<std::string> metrics;
  for (const char* pattern : panel.metrics)
    for (const std::string& name : present)
      if (matches(pattern, name) && std::find(metrics.begin(), metrics.end(), name) == metrics.end())
        metrics.push_back(name);
  return metrics;
}

void add_time_shares(ChartCard& card, const StageLog& stage) {
  double total = 0;
  for (const double seconds : stage.values("timing_s/step"))
    if (std::isfinite(seconds)) total += seconds;
  for (size_t i = 0; i < card.chart.series.size(); ++i) {
    double sum = 0;
    for (const double seconds : stage.values(card.chart.series[i].name))
      if (std::isfinite(seconds)) sum += seconds;
    if (total > 0) card.legend[i] += format(" {}%", std::lround(100 * sum / total));
  }
}

// The part of timing_s/step that no timer covers, so that the stack is as high as the step is long.
void add_untimed(ChartCard& card, const StageLog& stage) {
  ChartSeries rest = series_of(stage, "timing_s/step", 7);
  if (card.chart.series.empty() || rest.x != card.chart.series[0].x) return;
  for (size_t i = 0; i < rest.y.size(); ++i)
    for (const ChartSeries& series : card.chart.series)
      if (std::isfinite(series.y[i])) rest.y[i] = std::max(0.0, rest.y[i] - series.y[i]);
  rest.name = "other";
  card.chart.series.push_back(std::move(rest));
  card.legend.push_back("other");
}

ChartCard draw(const Panel& panel, const StageLog& stage, const std::vector<std::string>& metrics) {
  ChartCard card;
  card.chart.title = panel.title;
  card.chart.percent = panel.style & kPercent;
  card.chart.from_zero = panel.style & kFromZero;
  card.chart.stacked = panel.style & kStacked;
  for (const std::string& metric : metrics) {
    const auto values = stage.values(metric);
    if (extremes(values).count == 0 || always_zero(values)) continue;
    ChartSeries series = series_of(stage, metric, static_cast<int>(card.chart.series.size() % 8));
    series.markers = panel.style & kMarkers;
    card.chart.series.push_back(std::move(series));
    card.legend.push_back(metric);
  }
  if (card.chart.series.empty()) return card;
  if (panel.low != nullptr) {
    ChartSeries& first = card.chart.series[0];
    const ChartSeries low = series_of(stage, panel.low, 0), high = series_of(stage, panel.high, 0);
    if (low.x == first.x && high.x == first.x) {
      first.low = low.y;
      first.high = high.y;
      card.legend[0] += ", band: min to max";
    }
  }
  if (panel.style & kStacked) {
    // every part on the steps' own x, so that they add up
    const ChartSeries steps = series_of(stage, "timing_s/step", 0);
    const std::vector<double>& x = steps.x.empty() ? card.chart.series[0].x : steps.x;
    for (ChartSeries& series : card.chart.series) {
      ChartSeries aligned = series;
      aligned.x = x;
      aligned.y.assign(x.size(), 0.0);
      for (size_t i = 0; i < series.x.size(); ++i) {
        const auto found = std::lower_bound(x.begin(), x.end(), series.x[i]);
        if (found != x.end() && *found == series.x[i] && std::isfinite(series.y[i]))
          aligned.y[static_cast<size_t>(found - x.begin())] = series.y[i];
      }
      series = std::move(aligned);
    }
    add_time_shares(card, stage);
    add_untimed(card, stage);
  }
  if (panel.style & kPercent) {
    const Extremes all = extremes(card.chart.series);
    if ((panel.style & kMarkers) && all.low >= 0 && all.high <= 1) card.chart.y_range = {0.0, share_axis(all.high)};
  }
  int64_t bucket = 1;
  for (ChartSeries& series : card.chart.series) bucket = std::max(bucket, thin_out(series, kMaxPoints));
  if (bucket > 1) card.note = format("each point is the mean of {} steps", bucket);
  return card;
}

// A smooth line in front of the raw one; the legend and the hover values speak of the raw one.
void add_smooth_lines(ChartCard& card) {
  std::vector<ChartSeries> front;
  for (ChartSeries& series : card.chart.series) {
    if (series.y.size() < kSmoothedFrom) continue;
    front.push_back(smoothed(series));
    series.faint = true;
  }
  for (ChartSeries& series : front) {
    series.name.clear();
    card.chart.series.push_back(std::move(series));
  }
}

// From one record to the next, without the pause before a resumed run: a stretch far longer than what the record
// accounts for.
double seconds_at_work(const MetricRecord& before, const MetricRecord& record) {
  double accounted = 0;
  for (const char* metric : {"timing_s/step", "timing_s/eval"})
    if (const double* seconds = record.find(metric); seconds != nullptr && std::isfinite(*seconds))
      accounted += *seconds;
  const double apart = std::max(0.0, record.time - before.time);
  return apart > 10 * (accounted + 30) ? accounted : apart;
}

bool is_constant(const StageLog& stage, const std::string& metric) {
  const Extremes found = extremes(stage.values(metric));
  return found.count >= 3 && found.low == found.high;
}

bool same_values(const StageLog& stage, const std::string& a, const std::string& b) {
  return series_of(stage, a, 0).y == series_of(stage, b, 0).y;
}

std::set<std::string> names_in_panels(const std::vector<std::string>& present) {
  std::set<std::string> names;
  for (const Panel& panel : panels()) {
    for (const std::string& metric : metrics_of(panel, present)) names.insert(metric);
    if (panel.low != nullptr) names.insert({panel.low, panel.high});
  }
  names.insert("timing_s/step");
  return names;
}

}  // namespace

Chart learning_curve(const RunLog& run) {
  Chart chart;
  chart.title = run.name + ": held-out accuracy";
  chart.percent = true;
  chart.width = 1240;
  chart.height = 330;
  chart.whole_x = false;
  ChartSeries reward;
  reward.name = "training reward";
  reward.colour = 7;
  reward.faint = true;
  std::vector<ChartSeries> accuracies;
  double now = 0;  // seconds at work since the first record
  const MetricRecord* last = nullptr;
  for (const StageLog& stage : run.stages) {
    const double begin = now;
    for (const MetricRecord& record : stage.records) {
      if (last != nullptr) now += seconds_at_work(*last, record);
      last = &record;
      if (const double* value = record.find("reward")) {
        reward.x.push_back(now);
        reward.y.push_back(*value);
      }
      for (const auto& [name, value] : record.values) {
        if (!matches("eval/*/accuracy", name)) continue;
        const std::string set = name.substr(5, name.size() - 14);
        auto found = std::find_if(accuracies.begin(), accuracies.end(),
                                  [&set](const ChartSeries& series) { return series.name == set; });
        if (found == accuracies.end()) {
          ChartSeries series;
          series.name = set;
          series.colour = static_cast<int>(accuracies.size() % 7);
          series.markers = true;
          found = accuracies.insert(accuracies.end(), std::move(series));
        }
        found->x.push_back(now);
        found->y.push_back(value);
      }
    }
    chart.spans.push_back({stage.name, begin, now});
    // a gap, so that no line joins two stages' rewards
    if (!reward.x.empty()) {
      reward.x.push_back(now);
      reward.y.push_back(std::numeric_limits<double>::quiet_NaN());
    }
  }
  thin_out(reward, 2 * kMaxPoints);
  const Extremes range = extremes(reward.y);
  if (range.count > 0 && range.low >= 0 && range.high <= 1) chart.series.push_back(std::move(reward));
  for (ChartSeries& series : accuracies) chart.series.push_back(std::move(series));
  const Extremes shares = extremes(chart.series);
  chart.y_range = {0.0, shares.count > 0 ? share_axis(shares.high) : 1.0};
  if (accuracies.empty()) chart.title = run.name + ": training reward";

  const double unit = now < 180 ? 1 : now < 3 * 3600 ? 60 : 3600;
  chart.x_label = unit == 1 ? "seconds" : unit == 60 ? "minutes" : "hours";
  for (ChartSeries& series : chart.series)
    for (double& x : series.x) x /= unit;
  for (ChartSpan& span : chart.spans) span.begin /= unit, span.end /= unit;
  return chart;
}

std::vector<ChartCard> stage_charts(const StageLog& stage) {
  std::vector<ChartCard> cards;
  const auto present = stage.metrics();
  for (const Panel& panel : panels()) {
    auto metrics = metrics_of(panel, present);
    if (std::string_view(panel.title) == "Rewards by function" && metrics.size() < 2) continue;  // the reward itself
    if (std::string_view(panel.title) == "Loss" && same_values(stage, "loss", "policy_loss"))
      std::erase(metrics, "policy_loss");
    ChartCard card = draw(panel, stage, metrics);
    if (card.chart.series.empty()) continue;
    if (panel.style & kSmooth) add_smooth_lines(card);
    cards.push_back(std::move(card));
  }
  return cards;
}

std::vector<ChartCard> further_charts(const StageLog& stage) {
  std::vector<ChartCard> cards;
  const auto present = stage.metrics();
  const auto known = names_in_panels(present);
  for (const std::string& metric : present) {
    if (known.contains(metric) || is_constant(stage, metric)) continue;
    ChartCard card = draw({metric.c_str(), {}, kPlain}, stage, {metric});
    if (!card.chart.series.empty()) cards.push_back(std::move(card));
  }
  return cards;
}

std::vector<std::string> constant_metrics(const StageLog& stage) {
  std::vector<std::string> texts;
  const auto present = stage.metrics();
  const auto known = names_in_panels(present);
  for (const std::string& metric : present) {
    const auto values = stage.values(metric);
    const bool hidden =
        known.contains(metric) ? always_zero(values) : is_constant(stage, metric) || always_zero(values);
    if (hidden) texts.push_back(format("{} = {}", metric, short_number(extremes(values).low)));
  }
  return texts;
}

}  // namespace temper
