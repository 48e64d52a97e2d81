// code: runs the Python program in a completion against the prompt's tests, in a sandbox (bubblewrap): no network, no
// files but the system's programs, read-only, and an empty /tmp in memory; bounds on time, memory, processes and
// output.
//
// The program is the completion's last fenced block (```), or all of it where there is none. The tests stand in the
// field reward.code.tests_field of the prompt's line, and are one of
//   TEXT            Python that is run after the program, in the same file; passed: its end is reached
//   [TEST, ...]     each run by itself: a TEXT as above, or {"input": TEXT, "output": TEXT}: the program reads the
//                   input and must print the output, white space at line ends and at the end apart
// The reward is the share of tests that pass. A program that is too slow, too large or loops for ever has failed its
// test; a sandbox that does not work, or tests that are missing, are errors of scoring. What the program does to the
// tests in its own interpreter is not guarded against: keep input and output tests where a policy learns to cheat.
#pragma once
#include <memory>

#include "rollout/reward.h"

namespace temper {

// num_at_once programs run at a time. ConfigError where programs cannot be run in a sandbox here: what is missing.
std::unique_ptr<Reward> make_code_reward(const RewardSection::Code& settings, int64_t num_at_once);

}  // namespace temper
