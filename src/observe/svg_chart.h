// Line and stacked charts as SVG text, without colours of their own: strokes and fills come from CSS classes s0 to s7
// (series), axis, grid, tick, band, so that one chart serves light and dark pages. Pure functions.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace temper {

struct ChartSeries {
  std::string name;
  std::vector<double> x, y;       // same length, x rising; a y that is not finite breaks the line
  std::vector<double> low, high;  // the same length, or empty: a band around the line
  int colour = 0;                 // class s0 to s7
  bool markers = false;           // few points that each count (evaluations)
  bool faint = false;             // behind the others
};

struct ChartSpan {  // a labelled stretch of the x axis
  std::string label;
  double begin = 0, end = 0;
};

struct Chart {
  std::string title;  // for screen readers; drawn if `standalone`
  std::vector<ChartSeries> series;
  std::vector<ChartSpan> spans;
  bool stacked = false;    // areas that add up, on the first series' x
  bool percent = false;    // y are shares
  bool from_zero = false;  // the y axis begins at 0 (or below)
  std::optional<std::pair<double, double>> y_range;
  std::string x_label = "step";
  bool whole_x = true;  // x counts something: ticks at whole numbers only
  int width = 480, height = 230;
  bool standalone = false;  // with title, legend and style inside: a file of its own
};

std::string render_svg(const Chart& chart);

// Round tick positions inside [low, high], about `count` of them.
std::vector<double> round_ticks(double low, double high, int count);
// "0.25", "12.5k", "3e-06": four significant digits at most.
std::string short_number(double value);
// &, <, > and quotes as entities; control characters but tab and newline as U+FFFD; broken UTF-8 too.
std::string escape_html(const std::string& text);

// At most max_points buckets of equal width, each the mean of its finite values (low and high: the least and the
// greatest), so that a long run stays a small page. Returns the number of points that one bucket holds (1: nothing
// changed).
int64_t thin_out(ChartSeries& series, int64_t max_points);

// The colours of s0 to s7 and of the rest, light and, by media query, dark.
extern const char* const kChartStyle;

}  // namespace temper
