// command: a program of the user's own, spoken to in lines of JSON. It is started once, several times for
// reward.processes, and lives as long as the reward. One line a completion goes in:
//   {"prompt": TEXT, "completion": TEXT, "answer": TEXT, "finish_reason": "stop"|"length", "fields": {the prompt line's
//    further fields}}
// and one line comes out: a number, {"reward": NUMBER}, or {"error": TEXT} where the completion cannot be scored. A
// program that gives no line by the deadline, or ends, is started anew for the next completion: it is never asked about
// one completion while it may still be busy with another.
#pragma once
#include <memory>
#include <string>

#include "rollout/reward.h"

namespace temper {

// command: for /bin/sh; its standard error is passed on. ConfigError where it is empty.
std::unique_ptr<Reward> make_command_reward(const std::string& command, int64_t num_processes);

}  // namespace temper
