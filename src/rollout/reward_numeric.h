// Finds the number that a solution ends in, in the ways models and data sets write it, for the reward "numeric". Pure
// functions.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace temper {

struct Number {
  double value = 0;
  std::string digits;  // of an integer, with its sign and without leading zeros, since a double keeps only 15 of them;
                       // else empty
};

// Looked for in this order, inside the last <answer>…</answer> if there is one:
//   \boxed{7}, the last one; it must hold one number, or one after its last "="
//   #### 7, the last one
//   "answer is 7", "Answer: 7", "final answer = 7", the last one; of an equation the right-hand side
//   the last number of the text
// A number may have a sign, a currency or percent sign (both ignored: 50% is 50), thousands separators (1,234 or
// LaTeX's), decimals, an exponent (1e3, 1.5 \times 10^3); 3/4, \frac{3}{4} and 1 1/2 are fractions. Nothing for \sqrt
// and \pi.
std::optional<Number> final_number(std::string_view text);

// |a - b| <= tolerance; two integers of 16 digits or more must be the same when tolerance < 1.
bool numbers_agree(const Number& a, const Number& b, double tolerance);

}  // namespace temper
