#include "observe/svg_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace temper {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::Pointwise;

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();

TEST(RoundTicks, AreMultiplesOfOneTwoOrFiveInsideTheRange) {
  EXPECT_THAT(round_ticks(0, 1, 5), Pointwise(DoubleNear(1e-12), std::vector<double>{0, 0.2, 0.4, 0.6, 0.8, 1.0}));
  EXPECT_THAT(round_ticks(3, 97, 4), Pointwise(DoubleNear(1e-12), std::vector<double>{20, 40, 60, 80}));
  EXPECT_THAT(round_ticks(-0.0031, 0.0042, 4),
              Pointwise(DoubleNear(1e-15), std::vector<double>{-0.002, 0.0, 0.002, 0.004}));
  EXPECT_THAT(round_ticks(2, 2, 4), ElementsAre(2));
}

TEST(ShortNumber, HasFourSignificantDigitsAndAUnit) {
  EXPECT_EQ(short_number(0.123456), "0.1235");
  EXPECT_EQ(short_number(5e-6), "5e-06");
  EXPECT_EQ(short_number(9999), "9999");
  EXPECT_EQ(short_number(12345), "12.35k");
  EXPECT_EQ(short_number(1234567), "1.235M");
  EXPECT_EQ(short_number(2.5e9), "2.5G");
  EXPECT_EQ(short_number(kGap), "–");
}

TEST(EscapeHtml, LeavesNothingThatABrowserReadsAsMarkupOrAsBrokenText) {
  EXPECT_EQ(escape_html("<b>\"a\" & 'b'</b>\n\tü"), "&lt;b&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/b&gt;\n\tü");
  EXPECT_EQ(escape_html(std::string("a\0b\x1b[0m", 7)),
            "a\xef\xbf\xbd"
            "b\xef\xbf\xbd"
            "[0m");
  EXPECT_EQ(escape_html("cut \xe2\x82"), "cut \xef\xbf\xbd\xef\xbf\xbd");
}

TEST(ThinOut, AveragesBucketsAndKeepsTheBandsExtremes) {
  ChartSeries series;
  for (int i = 0; i < 10; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 3 ? kGap : i);
    series.low.push_back(-i);
    series.high.push_back(10 * i);
  }
  EXPECT_EQ(thin_out(series, 5), 2);
  EXPECT_THAT(series.x, ElementsAre(0.5, 2.5, 4.5, 6.5, 8.5));
  EXPECT_THAT(series.y, ElementsAre(0.5, 2, 4.5, 6.5, 8.5));
  EXPECT_THAT(series.low, ElementsAre(-1, -3, -5, -7, -9));
  EXPECT_THAT(series.high, ElementsAre(10, 30, 50, 70, 90));
  EXPECT_EQ(thin_out(series, 5), 1);
  EXPECT_EQ(series.x.size(), 5u);
}

Chart one_line(std::vector<double> y) {
  Chart chart;
  chart.title = "a < b";
  ChartSeries series;
  for (size_t i = 0; i < y.size(); ++i) series.x.push_back(static_cast<double>(i));
  series.y = std::move(y);
  chart.series.push_back(std::move(series));
  chart.y_range = {0.0, 1.0};
  return chart;
}

// The plot of a 480 x 230 chart reaches from (50, 198) to (466, 10).
TEST(RenderSvg, PutsValuesWhereTheAxesSay) {
  const std::string svg = render_svg(one_line({0, 1, 0.5}));
  EXPECT_THAT(svg, HasSubstr("d=\"M50.0 198.0L258.0 10.0L466.0 104.0\""));
  EXPECT_THAT(svg, HasSubstr("aria-label=\"a &lt; b\""));
  EXPECT_THAT(svg, HasSubstr(">0.6</text>"));
  EXPECT_THAT(svg, HasSubstr(">2</text>"));
}

TEST(RenderSvg, ValuesThatAreNotFiniteBreakTheLine) {
  const std::string svg = render_svg(one_line({0, kGap, 1, 0.5}));
  EXPECT_THAT(svg, HasSubstr("M50.0 198.0M327.3 10.0L466.0 104.0"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(RenderSvg, StackedAreasAddUp) {
  Chart chart = one_line({1, 1});
  chart.series.push_back(chart.series[0]);
  chart.series[1].y = {1, 3};
  chart.stacked = true;
  chart.y_range = {0.0, 4.0};
  const std::string svg = render_svg(chart);
  EXPECT_THAT(svg, HasSubstr("M50.0 151.0L466.0 151.0L466.0 198.0L50.0 198.0Z"));
  EXPECT_THAT(svg, HasSubstr("M50.0 104.0L466.0 10.0L466.0 151.0L50.0 151.0Z"));
}

TEST(RenderSvg, StaysFiniteWithOnePointAConstantOrNothing) {
  for (const std::vector<double>& y :
       std::vector<std::vector<double>>{{}, {3}, {2, 2, 2}, {kGap}, {0, 0}, {-1e-9, -1e-9}}) {
    Chart chart = one_line(y);
    chart.y_range.reset();
    const std::string svg = render_svg(chart);
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
  }
}

}  // namespace
}  // namespace temper
