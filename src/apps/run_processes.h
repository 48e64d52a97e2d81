// The processes of a run as someone sees them who only reads files: its trainer ranks, each with what it did last, and
// the rollout workers that its hub knows. For `temper status`.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_board.h"
#include "observe/run_state.h"

namespace temper {

struct RankReading {
  int rank = 0;
  std::string state;             // alive, stopped, gone; of another machine's: elsewhere; without a file: unknown
  std::optional<RankSign> sign;  // nothing: unknown
};

// Of a run of several ranks; of one alone status.json says it all. REQUIRES: run.status
std::vector<RankReading> read_ranks(const RunReading& run);

// Lines for a person, each with its end; empty: there is nothing to say.
std::string describe_ranks(const std::vector<RankReading>& ranks, double now);
std::string describe_hub(const RunStatus::Hub& hub);

nlohmann::ordered_json ranks_to_json(const std::vector<RankReading>& ranks, double now);

}  // namespace temper
