#include "rollout/environment.h"

#include "rollout/calculator.h"

namespace temper {
namespace {

// Ends another environment's episode after a number of turns.
class BoundedTurns final : public Environment {
 public:
  BoundedTurns(std::unique_ptr<Environment> inner, int64_t max_turns)
      : inner_(std::move(inner)), max_turns_(max_turns) {}
  const std::vector<std::string>& turn_ends() const override { return inner_->turn_ends(); }
  void reset(const Prompt& prompt) override {
    num_turns_ = 0;
    inner_->reset(prompt);
  }
  std::optional<std::string> step(const std::string& turn) override {
    if (++num_turns_ > max_turns_) return std::nullopt;
    return inner_->step(turn);
  }

 private:
  std::unique_ptr<Environment> inner_;
  int64_t max_turns_, num_turns_ = 0;
};

}  // namespace

std::unique_ptr<Environment> make_environment(RolloutEnvironment kind, int64_t max_turns) {
  switch (kind) {
    case RolloutEnvironment::kNone:
      return nullptr;
    case RolloutEnvironment::kCalculator:
      return std::make_unique<BoundedTurns>(std::make_unique<Calculator>(), max_turns);
  }
  return nullptr;
}

}  // namespace temper
