// The seam of several turns: after each turn of the policy an environment may add text that the policy reads next, such
// as the output of a tool. That text becomes tokens of the completion that no policy drew: mask 0, so no loss counts
// them. An environment is one episode, that of one completion, and answers at once: the engine waits for it.
//
// A new one: derive, and name it in config/choices.h and make_environment(). Rewards see the whole completion, tools'
// output included.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/choices.h"
#include "core/rollout_types.h"

namespace temper {

class Environment {
 public:
  virtual ~Environment() = default;
  // The strings that end a turn, not empty, the same for all episodes: the policy has written one of them.
  virtual const std::vector<std::string>& turn_ends() const = 0;
  // The episode begins.
  virtual void reset(const Prompt& prompt) = 0;
  // turn: what the policy has written since the last one, up to and with its end. What it reads next; nothing: the
  // episode is over. Throws std::runtime_error with the reason where the episode cannot go on: the completion counts as
  // failed.
  virtual std::optional<std::string> step(const std::string& turn) = 0;
};

// Null for RolloutEnvironment::kNone. After max_turns turns an episode is over.
std::unique_ptr<Environment> make_environment(RolloutEnvironment kind, int64_t max_turns);

}  // namespace temper
