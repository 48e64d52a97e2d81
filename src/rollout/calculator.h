// calculator: the policy writes <calc>EXPRESSION</calc> and reads <result>VALUE</result>. Expressions are muParser's
// (numbers, + - * / ^, parentheses, sqrt, ...); one that has no value gives <result>error: WHY</result>. The worked
// example of an environment.
#pragma once
#include <string>

#include "rollout/environment.h"

namespace temper {

// Whole numbers without a point, others with up to 10 digits. std::runtime_error with the reason where there is no
// value: no expression, a name that is not known, a value that is not finite.
std::string calculate(const std::string& expression);

class Calculator final : public Environment {
 public:
  const std::vector<std::string>& turn_ends() const override;
  void reset(const Prompt&) override {}
  std::optional<std::string> step(const std::string& turn) override;
};

}  // namespace temper
