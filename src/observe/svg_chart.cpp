#include "observe/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "core/format.h"

namespace temper {
namespace {

std::string pixels(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.1f", value);
  return digits;
}

struct Axis {
  double low = 0, high = 1;  // values
  double from = 0, to = 1;   // pixels
  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

// Ticks of one axis share their number of decimals.
std::vector<std::string> tick_labels(const std::vector<double>& ticks, bool percent) {
  const double step = ticks.size() > 1 ? ticks[1] - ticks[0] : 1;
  double greatest = 0;
  for (const double tick : ticks) greatest = std::max(greatest, std::abs(tick));
  const double scale = percent ? 100 : greatest >= 1e6 ? 1e-6 : greatest >= 1e4 ? 1e-3 : 1;
  const char* suffix = percent ? "%" : greatest >= 1e6 ? "M" : greatest >= 1e4 ? "k" : "";
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(step * scale) - 1e-9)), 0, 9);
  std::vector<std::string> labels;
  for (const double tick : ticks) {
    char text[48];
    if (!percent && greatest < 1e-3 && greatest > 0)
      std::snprintf(text, sizeof text, tick == 0 ? "0" : "%.*e",
                    std::max(0, static_cast<int>(std::floor(std::log10(greatest)) - std::floor(std::log10(step)))),
                    tick);
    else
      std::snprintf(text, sizeof text, "%.*f%s", decimals, tick * scale + 0.0, suffix);
    std::string label = text;
    if (const size_t zero = label.find("e-0"); zero != std::string::npos) label.erase(zero + 2, 1);
    labels.push_back(label == "-0" ? "0" : label);
  }
  return labels;
}

struct Extent {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

Axis y_axis_of(const Chart& chart) {
  Extent extent;
  if (chart.stacked) {
    for (size_t i = 0; !chart.series.empty() && i < chart.series[0].y.size(); ++i) {
      double sum = 0;
      for (const ChartSeries& series : chart.series)
        if (i < series.y.size() && std::isfinite(series.y[i])) sum += series.y[i];
      extent.take(sum);
    }
    extent.take(0);
  } else {
    for (const ChartSeries& series : chart.series)
      for (const auto* values : {&series.y, &series.low, &series.high})
        for (const double value : *values) extent.take(value);
  }
  if (chart.from_zero) extent.take(0);
  if (extent.empty()) extent = {0, 1};
  if (chart.y_range) extent = {chart.y_range->first, chart.y_range->second};
  Axis axis{extent.low, extent.high};
  if (axis.low == axis.high) {
    const double room = axis.low == 0 ? 1 : std::abs(axis.low) * 0.5;
    if (axis.low < 0 || !chart.from_zero) axis.low -= room;
    axis.high += room;
  } else if (!chart.y_range) {
    const double room = (axis.high - axis.low) * 0.06;
    if (axis.low != 0) axis.low -= room;
    if (axis.high != 0) axis.high += room;
  }
  return axis;
}

// "M x y L x y …" with a new M after each gap.
std::string line_path(const ChartSeries& series, const std::vector<double>& y, const Axis& x_axis, const Axis& y_axis) {
  std::string path;
  bool pen_down = false;
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!std::isfinite(y[i])) {
      pen_down = false;
      continue;
    }
    path += (pen_down ? "L" : "M") + pixels(x_axis.at(series.x[i])) + " " + pixels(y_axis.at(y[i]));
    pen_down = true;
  }
  return path;
}

// The area between two curves, in one piece per stretch where both are finite.
std::string area_path(const std::vector<double>& x, const std::vector<double>& low, const std::vector<double>& high,
                      const Axis& x_axis, const Axis& y_axis) {
  std::string path;
  for (size_t begin = 0; begin < x.size();) {
    size_t end = begin;
    while (end < x.size() && std::isfinite(low[end]) && std::isfinite(high[end])) ++end;
    if (end > begin) {
      for (size_t i = begin; i < end; ++i)
        path += (i == begin ? "M" : "L") + pixels(x_axis.at(x[i])) + " " + pixels(y_axis.at(high[i]));
      for (size_t i = end; i-- > begin;) path += "L" + pixels(x_axis.at(x[i])) + " " + pixels(y_axis.at(low[i]));
      path += "Z";
    }
    begin = end + 1;
  }
  return path;
}

void draw_lines(std::string& svg, const Chart& chart, const Axis& x_axis, const Axis& y_axis) {
  for (const ChartSeries& series : chart.series)
    if (!series.low.empty())
      svg += format("<path class=\"area a s{}\" d=\"{}\"/>", series.colour,
                    area_path(series.x, series.low, series.high, x_axis, y_axis));
  for (const ChartSeries& series : chart.series)
    svg += format("<path class=\"line s{}{}\" d=\"{}\"/>", series.colour, series.faint ? " faint" : "",
                  line_path(series, series.y, x_axis, y_axis));
  for (const ChartSeries& series : chart.series) {
    size_t num_finite = 0, last = 0;
    for (size_t i = 0; i < series.y.size(); ++i)
      if (std::isfinite(series.y[i])) {
        ++num_finite;
        last = i;
      }
    const bool all = (series.markers && num_finite <= 60) || num_finite == 1;
    for (size_t i = 0; i < series.y.size(); ++i)
      if (std::isfinite(series.y[i]) && (all || (series.markers && i == last)))
        svg += format("<circle class=\"dot s{}\" cx=\"{}\" cy=\"{}\" r=\"3\"/>", series.colour,
                      pixels(x_axis.at(series.x[i])), pixels(y_axis.at(series.y[i])));
  }
}

void draw_stack(std::string& svg, const Chart& chart, const Axis& x_axis, const Axis& y_axis) {
  if (chart.series.empty()) return;
  const std::vector<double>& x = chart.series[0].x;
  std::vector<double> below(x.size(), 0.0), above(x.size());
  for (const ChartSeries& series : chart.series) {
    for (size_t i = 0; i < x.size(); ++i) above[i] = below[i] + (std::isfinite(series.y[i]) ? series.y[i] : 0.0);
    svg += format("<path class=\"area s{}\" d=\"{}\"/>", series.colour, area_path(x, below, above, x_axis, y_axis));
    below = above;
  }
}

}  // namespace

std::vector<double> round_ticks(double low, double high, int count) {
  const double raw = (high - low) / std::max(1, count);
  if (!(raw > 0) || !std::isfinite(raw)) return {low};
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double share = raw / power;
  const double step = power * (share < 1.5 ? 1 : share < 3.5 ? 2 : share < 7.5 ? 5 : 10);
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return "–";
  char text[48];
  const double size = std::abs(value);
  if (size >= 999.95e6)
    std::snprintf(text, sizeof text, "%.4gG", value / 1e9);
  else if (size >= 999.95e3)
    std::snprintf(text, sizeof text, "%.4gM", value / 1e6);
  else if (size >= 9999.5)
    std::snprintf(text, sizeof text, "%.4gk", value / 1e3);
  else
    std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = byte < 0x80                   ? 1
                          : byte >= 0xc2 && byte < 0xe0 ? 2
                          : byte >= 0xe0 && byte < 0xf0 ? 3
                          : byte >= 0xf0 && byte < 0xf5 ? 4
                                                        : 0;
    bool whole = length > 0 && i + length <= text.size();
    for (size_t j = 1; whole && j < length; ++j) whole = (text[i + j] & 0xc0) == 0x80;
    if (!whole || (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f) {
      out += "\xef\xbf\xbd";
      ++i;
      continue;
    }
    if (byte == '&')
      out += "&amp;";
    else if (byte == '<')
      out += "&lt;";
    else if (byte == '>')
      out += "&gt;";
    else if (byte == '"')
      out += "&quot;";
    else if (byte == '\'')
      out += "&#39;";
    else
      out += text.substr(i, length);
    i += length;
  }
  return out;
}

int64_t thin_out(ChartSeries& series, int64_t max_points) {
  const auto size = static_cast<int64_t>(series.x.size());
  const int64_t bucket = (size + max_points - 1) / std::max<int64_t>(1, max_points);
  if (bucket <= 1) return 1;
  ChartSeries thin = series;
  thin.x.clear(), thin.y.clear(), thin.low.clear(), thin.high.clear();
  for (int64_t begin = 0; begin < size; begin += bucket) {
    double sum = 0, count = 0;
    Extent extent;
    const int64_t end = std::min(size, begin + bucket);
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      if (std::isfinite(series.y[at])) {
        sum += series.y[at];
        ++count;
      }
      if (!series.low.empty()) extent.take(series.low[at]), extent.take(series.high[at]);
    }
    const double nan = std::numeric_limits<double>::quiet_NaN();
    thin.x.push_back((series.x[static_cast<size_t>(begin)] + series.x[static_cast<size_t>(end - 1)]) / 2);
    thin.y.push_back(count > 0 ? sum / count : nan);
    if (series.low.empty()) continue;
    thin.low.push_back(extent.empty() ? nan : extent.low);
    thin.high.push_back(extent.empty() ? nan : extent.high);
  }
  series = std::move(thin);
  return bucket;
}

std::string render_svg(const Chart& chart) {
  const double top = chart.standalone ? 64 : chart.spans.empty() ? 10 : 26;
  const double left = chart.standalone ? 60 : 50, right = 14, bottom = chart.standalone ? 44 : 32;
  Axis y_axis = y_axis_of(chart);
  y_axis.from = chart.height - bottom;
  y_axis.to = top;
  Extent x_extent;
  for (const ChartSeries& series : chart.series)
    for (const double x : series.x) x_extent.take(x);
  if (!x_extent.empty() && x_extent.low > 0 && x_extent.low <= 1)
    x_extent.take(0);  // the first step stands beside step 0
  for (const ChartSpan& span : chart.spans) x_extent.take(span.begin), x_extent.take(span.end);
  if (x_extent.empty()) x_extent = {0, 1};
  if (x_extent.low == x_extent.high) x_extent = {x_extent.low - 1, x_extent.high + 1};
  const Axis x_axis{x_extent.low, x_extent.high, left, chart.width - right};

  std::string svg =
      format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" data-x=\"{} {} {} {}\" data-y=\"{} {} {} {}\"",
             chart.width, chart.height, escape_html(chart.title), x_axis.low, x_axis.high, x_axis.from, x_axis.to,
             y_axis.low, y_axis.high, y_axis.from, y_axis.to);
  if (chart.standalone)
    svg += format(
        " xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\"><style>{}</style><rect class=\"paper\" "
        "width=\"{}\" height=\"{}\" rx=\"8\"/",
        chart.width, chart.height, kChartStyle, chart.width, chart.height);
  svg += ">";

  for (size_t i = 0; i < chart.spans.size(); ++i) {
    const ChartSpan& span = chart.spans[i];
    const double begin = x_axis.at(span.begin), end = x_axis.at(span.end);
    svg += format("<rect class=\"span{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", i % 2, pixels(begin),
                  pixels(top), pixels(end - begin), pixels(y_axis.from - top));
    if (end - begin >= 7.5 * static_cast<double>(span.label.size()))
      svg += format("<text class=\"label\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">{}</text>",
                    pixels((begin + end) / 2), pixels(top - 8), escape_html(span.label));
  }
  const auto y_ticks = round_ticks(y_axis.low, y_axis.high, chart.height > 260 ? 6 : 4);
  const auto y_labels = tick_labels(y_ticks, chart.percent);
  for (size_t i = 0; i < y_ticks.size(); ++i) {
    const std::string y = pixels(y_axis.at(y_ticks[i]));
    svg += format(
        "<path class=\"grid\" d=\"M{} {}H{}\"/><text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{}\" "
        "dy=\".32em\">{}</text>",
        pixels(left), y, pixels(chart.width - right), pixels(left - 7), y, y_labels[i]);
  }
  auto x_ticks = round_ticks(x_axis.low, x_axis.high, chart.width > 600 ? 8 : 5);
  if (chart.whole_x) std::erase_if(x_ticks, [](double tick) { return tick != std::floor(tick); });
  const auto x_labels = tick_labels(x_ticks, false);
  for (size_t i = 0; i < x_ticks.size(); ++i) {
    const std::string x = pixels(x_axis.at(x_ticks[i]));
    svg += format(
        "<path class=\"axis\" d=\"M{} {}v4\"/><text class=\"tick\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">{}</text>",
        x, pixels(y_axis.from), x, pixels(y_axis.from + 16), x_labels[i]);
  }
  svg +=
      format("<path class=\"axis\" d=\"M{} {}H{}\"/>", pixels(left), pixels(y_axis.from), pixels(chart.width - right));
  if (!chart.x_label.empty())
    svg += format("<text class=\"tick\" text-anchor=\"{}\" x=\"{}\" y=\"{}\">{}</text>",
                  chart.standalone ? "middle" : "end",
                  pixels(chart.standalone ? (left + chart.width - right) / 2 : left - 7),
                  pixels(chart.standalone ? chart.height - 10.0 : y_axis.from + 16), escape_html(chart.x_label));

  if (chart.stacked)
    draw_stack(svg, chart, x_axis, y_axis);
  else
    draw_lines(svg, chart, x_axis, y_axis);

  if (chart.standalone) {
    svg += format("<text class=\"title\" x=\"{}\" y=\"26\">{}</text>", pixels(left - 40), escape_html(chart.title));
    double x = chart.width - right;
    for (size_t i = chart.series.size(); i-- > 0;) {  // from the right
      const ChartSeries& series = chart.series[i];
      x -= 7.2 * static_cast<double>(series.name.size()) + 6;
      svg += format("<text class=\"label\" x=\"{}\" y=\"26\">{}</text><path class=\"line s{}{}\" d=\"M{} 22h16\"/>",
                    pixels(x), escape_html(series.name), series.colour, series.faint ? " faint" : "", pixels(x - 22));
      x -= 36;
    }
  }
  return svg + "</svg>";
}

const char* const kChartStyle = R"css(
:root{--paper:#ffffff;--ink:#1d2430;--muted:#667085;--grid:#e8ebf0;--axis:#aab2bf;--band0:#f4f6f9;--band1:#fbf5ec;
--c0:#2563c9;--c1:#d9741c;--c2:#1a9a78;--c3:#b23fa3;--c4:#c99a06;--c5:#6b58d3;--c6:#d1435b;--c7:#5f7285}
@media(prefers-color-scheme:dark){:root{--paper:#171c24;--ink:#e7ebf2;--muted:#98a3b5;--grid:#29303b;--axis:#55606f;--band0:#1b212b;--band1:#231f1b;
--c0:#6ea3ff;--c1:#ff9d4d;--c2:#3fcfa6;--c3:#e07fd3;--c4:#e8c547;--c5:#a294ff;--c6:#ff7d92;--c7:#93a5b8}}
svg{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.paper{fill:var(--paper)}.title{font-size:16px;font-weight:600;fill:var(--ink)}.label{font-size:12px;fill:var(--ink)}.tick{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
.grid{stroke:var(--grid);fill:none}.axis{stroke:var(--axis);fill:none}.span0{fill:var(--band0)}.span1{fill:var(--band1)}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.line.faint{stroke-width:1.2;opacity:.5}.area{stroke:none;opacity:.85}.area.a{opacity:.16}
.dot{stroke:var(--paper);stroke-width:1.2}
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}
.line{stroke:var(--c)}.area,.dot{fill:var(--c)}
)css";

}  // namespace temper
