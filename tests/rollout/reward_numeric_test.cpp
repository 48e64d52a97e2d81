#include "rollout/reward_numeric.h"

#include <gtest/gtest.h>

#include <cmath>

namespace temper {
namespace {

struct Case {
  const char* text;
  double expected;
};

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

void expect_all(std::initializer_list<Case> cases) {
  for (const auto& [text, expected] : cases) {
    const auto number = final_number(text);
    if (std::isnan(expected)) {
      EXPECT_FALSE(number) << text << "\ngave " << number->value;
      continue;
    }
    if (!number) {
      ADD_FAILURE() << "no number in: " << text;
      continue;
    }
    EXPECT_NEAR(number->value, expected, 1e-9 * std::max(1.0, std::abs(expected))) << text;
  }
}

TEST(FinalNumber, ReadsTheMarksOfDataSetsAndModels) {
  expect_all({
      {"Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = 72 clips altogether.\n#### 72", 72},
      {"#### 7", 7},
      {"####7", 7},
      {"#### $1,250.50 in total", 1250.5},
      {"#### -3", -3},
      {"First 3.\n#### 10\nLet me check: 5+5.\n#### 11", 11},
      {"#### 1. Add them up\n3 + 4 = 7", 7},
      {"#### Step 2\nWe get 8.", 8},
      {"So we have \\boxed{7}.", 7},
      {"$\\boxed{42}$ and not 43", 42},
      {"\\boxed{3} then corrected: \\boxed{4}. 5 checks.", 4},
      {"\\boxed{x = 12}", 12},
      {"\\boxed{7 \\text{ apples}}", 7},
      {"\\boxed{25\\text{ m}^2}", 25},
      {"\\boxed{\\frac{3}{4}}", 0.75},
      {"\\boxed{-\\dfrac{1}{2}}", -0.5},
      {"\\boxed{\\frac{-1}{8}}", -0.125},
      {"\\boxed{\\frac12}", 0.5},
      {"\\boxed{2\\frac{1}{4}}", 2.25},
      {"\\boxed{\\$18.90}", 18.9},
      {"\\boxed{35\\%}", 35},
      {"\\boxed{1{,}234}", 1234},
      {"\\boxed{10\\,000}", 10000},
      {"\\boxed {19}", 19},
      {"\\boxed{7} and then a box that is cut off: \\boxed{8", 7},
      {"Answer: 7", 7},
      {"answer:7", 7},
      {"**Answer:** 7", 7},
      {"**Final Answer:** $1,234", 1234},
      {"Answer:\n\n7", 7},
      {"Answer = 7", 7},
      {"The answer is 7.", 7},
      {"the answer is 7. I used 3 and 4", 7},
      {"The final answer is: -12", -12},
      {"The answer is **15**. Check: 5 * 3 = 15, and 2 more would be 17.", 15},
      {"The answer is 3 + 4 = 7", 7},
      {"The answer to the question is 99 dollars.", 99},
      {"So the answer is $x = 8$.", 8},
      {"To find the answer: first compute 3+4=7. Then 7*2=14.", 14},
      {"The answer is 0.5.", 0.5},
      {"<think>maybe 5</think><answer>6</answer>", 6},
      {"<answer>The total is $1,000</answer> (rounded from 999)", 1000},
      {"<answer> \\boxed{31} </answer>", 31},
      {"<answer>8", 8},
  });
}

TEST(FinalNumber, ElseTakesTheLastNumberOfTheText) {
  expect_all({
      {"7", 7},
      {"3 + 4 = 7", 7},
      {"She has 12 apples, then eats 5, so 7 remain.", 7},
      {"It costs $5", 5},
      {"It costs 5 \u20ac", 5},
      {"\u20b93,50,000 is 350000", 350000},
      {"about 12.5%", 12.5},
      {"x=-5", -5},
      {"10-3", 3},
      {"-$5", -5},
      {"$-5", -5},
      {"the result: \u22125", -5},
      {"1,234,567", 1234567},
      {"1\u202f234", 1234},
      {"(1,2)", 2},
      {"1,2345", 2345},
      {".5", 0.5},
      {"-.25", -0.25},
      {"3/4", 0.75},
      {"-3/4", -0.75},
      {"1 1/2", 1.5},
      {"2\u00bd", 2.5},
      {"1.5e3", 1500},
      {"6.02 \\times 10^{23}", 6.02e23},
      {"2\u00d710^-3", 0.002},
      {"007", 7},
      {"7kg", 7},
      {"36 m^2", 36},
      {"the 8 atoms of CO2", 8},
      {"\u7b54\u6848\u662f7\u4e2a", 7},
      {"7 \xf0\x9f", 7},
  });
}

TEST(FinalNumber, IsNothingWhereThereIsNone) {
  expect_all({
      {"", kNone},
      {"seven", kNone},
      {"\\boxed{}", kNone},
      {"\\boxed{\\sqrt{2}}", kNone},
      {"\\boxed{2\\pi}", kNone},
      {"\\boxed{(3, 4)}", kNone},
      {"3/4 x. The answer is unknown.", kNone},
      {"\\frac{", kNone},
      {"-", kNone},
      {"H2O", kNone},
      {"\\frac{1}{0}", kNone},
      {"5/0", kNone},
      {"1e999", kNone},
  });
}

TEST(NumbersAgree, WithinTheAbsoluteToleranceAndDigitByDigitWhereDoublesEnd) {
  const auto agree = [](const char* a, const char* b, double tolerance) {
    return numbers_agree(*final_number(a), *final_number(b), tolerance);
  };
  EXPECT_TRUE(agree("0.333333", "1/3", 1e-6));
  EXPECT_FALSE(agree("0.3333", "1/3", 1e-6));
  EXPECT_TRUE(agree("7.00", "7", 0));
  EXPECT_TRUE(agree("50%", "50", 0));
  EXPECT_FALSE(agree("1000001", "1000000", 1e-6));
  EXPECT_TRUE(agree("99", "100", 1));
  EXPECT_FALSE(agree("9007199254740993", "9007199254740992", 1e-6));
  EXPECT_TRUE(agree("9,007,199,254,740,993", "9007199254740993", 1e-6));
  EXPECT_FALSE(agree("-9007199254740993", "9007199254740993", 1e-6));
}

}  // namespace
}  // namespace temper
