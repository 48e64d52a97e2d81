#include "observe/report.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "core/files.h"
#include "core/format.h"
#include "observe/progress.h"
#include "observe/report_charts.h"
#include "observe/report_page.h"
#include "observe/svg_chart.h"

namespace temper {
namespace {

constexpr size_t kCompletionsShown = 4;  // of a group
constexpr size_t kLongestText = 1500;    // bytes of a prompt or completion

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f%%", 100 * share);
  return text;
}

std::string date_text(double seconds_since_epoch) {
  const auto time = static_cast<std::time_t>(seconds_since_epoch);
  std::tm utc{};
  char text[64];
  if (gmtime_r(&time, &utc) == nullptr || std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc) == 0) return "?";
  return text;
}

// Cut between characters.
std::string shortened(const std::string& text) {
  if (text.size() <= kLongestText) return escape_html(text);
  size_t end = kLongestText;
  while (end > 0 && (text[end] & 0xc0) == 0x80) --end;
  return escape_html(text.substr(0, end)) +
         format(" <span class=\"small\">… and {} more bytes</span>", text.size() - end);
}

std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

// The named series, for the values under the pointer.
std::string series_json(const Chart& chart) {
  std::string json = "[";
  for (const ChartSeries& series : chart.series) {
    if (series.name.empty()) continue;
    if (json.size() > 1) json += ",";
    json += format("{\"n\":{},\"c\":{},\"x\":[", json_string(series.name), series.colour);
    for (size_t i = 0; i < series.x.size(); ++i) json += (i > 0 ? "," : "") + json_number(series.x[i]);
    json += "],\"y\":[";
    for (size_t i = 0; i < series.y.size(); ++i) json += (i > 0 ? "," : "") + json_number(series.y[i]);
    json += "]}";
  }
  return json + "]";
}

std::string figure(const Chart& chart, const std::string& caption, const std::string& legend,
                   const char* classes = "card") {
  return format("<figure class=\"{}\"{} data-x=\"{}\" data-series=\"{}\"><figcaption>{}</figcaption>{}{}</figure>\n",
                classes, chart.percent ? " data-percent=\"1\"" : "", chart.x_label, escape_html(series_json(chart)),
                caption, render_svg(chart), legend);
}

std::string legend_html(const Chart& chart, const std::vector<std::string>& texts, const std::string& note) {
  std::string html = "<ul class=\"legend\">";
  for (size_t i = 0; i < texts.size(); ++i)
    html += format("<li class=\"s{}\"><i></i>{}</li>", chart.series[i].colour, escape_html(texts[i]));
  if (!note.empty()) html += "<li>" + note + "</li>";
  return html + "</ul>";
}

std::string card_html(const ChartCard& card) {
  std::string last;
  if (card.legend.size() == 1) {
    const auto& y = card.chart.series[0].y;
    const auto found = std::find_if(y.rbegin(), y.rend(), [](double value) { return std::isfinite(value); });
    if (found != y.rend())
      last = format("<span class=\"last\">last {}</span>", card.chart.percent ? percent(*found) : short_number(*found));
  }
  return figure(card.chart, format("<span>{}</span>{}", escape_html(card.chart.title), last),
                legend_html(card.chart, card.legend, card.note));
}

// ---- Head of the page
// ---------------------------------------------------------------------------------------------------------

std::string model_text(const StageConfig& stage) {
  if (!stage.model.path.empty()) return stage.model.path;
  const ModelInit& init = stage.model.init;
  if (init.family.empty()) return "?";
  return format("new {} with {} layers, hidden size {}", init.family, init.num_layers, init.hidden_size);
}

std::string fact(const char* name, const std::string& value) {
  return format("<span>{} <b>{}</b></span>", name, escape_html(value));
}

std::string header_html(const RunLog& run) {
  std::string html = "<header><h1>" + escape_html(run.name) + "</h1><div class=\"facts\">";
  if (run.config) {
    const StageConfig& first = run.config->stages.front();
    html += fact("model", model_text(first));
    html += fact("data", first.data.path.empty() ? first.data.task : first.data.path);
    html += fact("seed", format("{}", run.config->run.seed));
  }
  const double begin = run.stages.front().records.front().time, end = run.stages.back().records.back().time;
  html += fact("begun", date_text(begin)) + fact("duration", duration_text(end - begin));
  int64_t steps = 0;
  for (const StageLog& stage : run.stages) steps += stage.records.back().step;
  html += fact("steps", format("{}", steps)) + "</div>";
  for (const std::string& note : run.notes) html += "<p class=\"note\">" + escape_html(note) + "</p>";
  html += "</header><nav><div><a href=\"#overview\">Overview</a>";
  for (size_t i = 0; i < run.stages.size(); ++i)
    html += format("<a href=\"#stage{}\">{}</a>", i, escape_html(run.stages[i].name));
  if (!run.config_text.empty()) html += "<a href=\"#configuration\">Configuration</a>";
  return html + "</div></nav>\n";
}

double stage_seconds(const StageLog& stage) {
  double sum = 0;
  for (const double seconds : stage.values("timing_s/step"))
    if (std::isfinite(seconds)) sum += seconds;
  const double apart =
      stage.records.back().time - stage.records.front().time;  // longer: evaluations; shorter: a resumed run
  return std::max(sum, apart);
}

std::string before_after_row(const std::string& name, double before, double after, bool as_percent,
                             bool more_is_better) {
  const auto text = [as_percent](double value) { return as_percent ? percent(value) : short_number(value); };
  const double rise = after - before;
  const bool better = more_is_better ? rise > 0 : rise < 0;
  const char* direction = rise == 0 ? "small" : better ? "up" : "down";
  return format("<tr><td>{}</td><td class=\"from\">{} →</td><td class=\"big {}\">{}</td></tr>", escape_html(name),
                text(before), direction, text(after));
}

std::string tile_html(const RunLog& run, const StageLog& stage) {
  std::string html = "<div class=\"card tile\"><h3>" + escape_html(stage.name) + "</h3><p>";
  const StageConfig* config = run.config_of(stage.name);
  if (config != nullptr && to_string(config->algo.preset) != stage.name)
    html += std::string(to_string(config->algo.preset)) + " · ";
  html += format("{} steps · {}", stage.records.back().step, duration_text(stage_seconds(stage)));
  if (config != nullptr && config->algo.trains_on_rollouts())
    html += " · rewards " + escape_html(join(config->reward.functions));
  html += "</p><table>";
  size_t rows = 0;
  for (const std::string& metric : stage.metrics()) {
    const auto ends = stage.first_and_last(metric);
    if (!ends) continue;
    for (const auto& [ending, label, is_share] :
         {std::tuple{"/accuracy", "accuracy", true}, std::tuple{"/pair_accuracy", "pairs told apart", true},
          std::tuple{"/bits_per_char", "bits per character", false}}) {
      if (!metric.starts_with("eval/") || !metric.ends_with(ending)) continue;
      const std::string set = metric.substr(5, metric.size() - 5 - std::string_view(ending).size());
      html += before_after_row(format("{}, {}", label, set), ends->first, ends->second, is_share, is_share);
      ++rows;
    }
  }
  for (const auto& [metric, label, good] : {std::tuple{"reward", "reward", true}, std::tuple{"loss", "loss", false}}) {
    const auto ends = stage.first_and_last(metric);
    if (!ends || (rows > 0 && !good && stage.first_and_last("reward"))) continue;
    html += before_after_row(label, ends->first, ends->second, false, good);
  }
  return html + "</table></div>";
}

std::string overview_html(const RunLog& run) {
  std::string html = "<section id=\"overview\"><div class=\"tiles\">";
  for (const StageLog& stage : run.stages) html += tile_html(run, stage);
  html += "</div>\n";
  const Chart curve = learning_curve(run);
  if (curve.series.empty()) return html + "</section>\n";
  std::vector<std::string> names;
  for (const ChartSeries& series : curve.series) names.push_back(series.name);
  const bool evaluated = curve.series.size() > 1 || curve.series[0].markers;
  return html +
         figure(curve, evaluated ? "<span>Held-out accuracy, stage by stage</span>" : "<span>Training reward</span>",
                legend_html(curve, names, ""), "card wide") +
         "</section>\n";
}

// ---- Completions
// --------------------------------------------------------------------------------------------------------------

// What the first reward function says of a completion: 1 is correct.
const char* verdict(const CompletionEntry& entry) {
  if (!entry.error.empty() || entry.rewards.empty() || !std::isfinite(entry.rewards[0].second)) return "failed";
  return entry.rewards[0].second >= 1 - 1e-9 ? "good" : entry.rewards[0].second <= 0 ? "bad" : "middling";
}

double total(const CompletionEntry& entry) {
  double sum = 0;
  for (const auto& [name, value] : entry.rewards) sum += std::isfinite(value) ? value : 0;
  return sum;
}

std::string completion_html(const CompletionEntry& entry) {
  std::string html = format("<div class=\"completion {}\"><div class=\"chips\">", verdict(entry));
  for (const auto& [name, value] : entry.rewards)
    html += format("<span>{} <b>{}</b></span>", escape_html(name), short_number(value));
  if (std::isfinite(entry.advantage)) {
    const double rounded = std::round(entry.advantage * 1000) / 1000;
    html += format("<span>advantage {}{}</span>", rounded > 0 ? "+" : "",
                   short_number(rounded == 0 ? 0.0 : rounded));  // no "-0"
  }
  if (entry.finish_reason != FinishReason::kStop)
    html += format("<span>ended by {}</span>", finish_reason_name(entry.finish_reason));
  html += "</div>";
  if (!entry.error.empty()) html += "<div class=\"small\">not scored: " + escape_html(entry.error) + "</div>";
  return html + "<pre>" + (entry.text.empty() ? "<span class=\"small\">(empty)</span>" : shortened(entry.text)) +
         "</pre></div>";
}

// The best and the worst of a group, best first.
std::vector<const CompletionEntry*> to_show(const CompletionRecord& record) {
  std::vector<const CompletionEntry*> entries;
  for (const CompletionEntry& entry : record.completions) entries.push_back(&entry);
  std::stable_sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) { return total(*a) > total(*b); });
  if (entries.size() > kCompletionsShown)
    entries.erase(entries.begin() + kCompletionsShown / 2, entries.end() - kCompletionsShown / 2);
  return entries;
}

std::string group_html(const CompletionRecord& record) {
  std::string html = "<div class=\"group\"><div class=\"prompt\"><pre>" + shortened(record.prompt) + "</pre>";
  if (!record.answer.empty()) html += "<p class=\"small\">answer: " + shortened(record.answer) + "</p>";
  html += "</div>";
  const auto shown = to_show(record);
  for (const CompletionEntry* entry : shown) html += completion_html(*entry);
  if (shown.size() < record.completions.size())
    html += format("<p class=\"small\">the best and the worst {} of {} completions</p>", kCompletionsShown / 2,
                   record.completions.size());
  return html + "</div>";
}

std::string completions_html(const StageLog& stage) {
  if (stage.completions.empty()) return "";
  std::string html = "<h3>Completions, early to late</h3><div class=\"moments\">";
  for (size_t i = 0; i < stage.completions.size();) {
    const int64_t step = stage.completions[i].step;
    html += format("<div class=\"card\"><h4>Step {}</h4>", step);
    for (; i < stage.completions.size() && stage.completions[i].step == step; ++i)
      html += group_html(stage.completions[i]);
    html += "</div>";
  }
  return html + "</div>\n";
}

// ---- A stage
// ------------------------------------------------------------------------------------------------------------------

std::string stage_html(const StageLog& stage, size_t index) {
  std::string html =
      format("<section id=\"stage{}\"><h2>{}</h2><div class=\"charts\">\n", index, escape_html(stage.name));
  for (const ChartCard& card : stage_charts(stage)) html += card_html(card);
  html += "</div>\n";
  if (const auto constants = constant_metrics(stage); !constants.empty())
    html += "<p class=\"constants\">Constant: " + escape_html(join(constants)) + "</p>";
  if (const auto further = further_charts(stage); !further.empty()) {
    html += format("<details><summary>{} further metric{}</summary><div class=\"charts\">\n", further.size(),
                   further.size() == 1 ? "" : "s");
    for (const ChartCard& card : further) html += card_html(card);
    html += "</div></details>\n";
  }
  return html + completions_html(stage) + "</section>\n";
}

}  // namespace

std::string report_html(const RunLog& run) {
  std::string html = format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">"
      "<title>{} · temper</title><style>{}{}</style></head><body>\n",
      escape_html(run.name), kChartStyle, kReportStyle);
  html += header_html(run) + "<main>" + overview_html(run);
  for (size_t i = 0; i < run.stages.size(); ++i) html += stage_html(run.stages[i], i);
  if (!run.config_text.empty())
    html +=
        "<section id=\"configuration\"><h2>Configuration</h2><details><summary>config.toml, resolved</summary><pre "
        "class=\"file\">" +
        escape_html(run.config_text) + "</pre></details></section>\n";
  html += format(
      "</main><footer>Made by temper {} from {}. Names are those of metrics.jsonl and TensorBoard.</footer><div "
      "id=\"tip\"></div><script>{}</script></body></html>\n",
      TEMPER_VERSION, escape_html(run.dir), kReportScript);
  return html;
}

std::string write_report(const std::string& run_dir) {
  const std::string path = run_dir + "/report.html";
  write_file_atomically(path, report_html(read_run(run_dir)));
  return path;
}

void write_learning_curve_svg(const std::string& run_dir, const std::string& path) {
  Chart chart = learning_curve(read_run(run_dir));
  chart.standalone = true;
  chart.width = 900;
  chart.height = 340;
  write_file_atomically(path, render_svg(chart) + "\n");
}

}  // namespace temper
