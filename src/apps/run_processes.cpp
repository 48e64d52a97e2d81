#include "apps/run_processes.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/format.h"
#include "observe/progress.h"

namespace temper {
namespace {

std::string state_of(const RankSign& sign) {
  if (!sign.on_this_host) return "elsewhere";
  switch (sign.process_state) {
    case 'T':
    case 't':
      return "stopped";
    case '?':
    case 'Z':
    case 'X':
      return "gone";
    default:
      return "alive";
  }
}

double age_of(const RankSign& sign, double now) { return std::max(0.0, now - sign.time); }

std::string describe(const RankReading& rank, double now) {
  if (!rank.sign) return format("{} unknown (no logs/rank_{}.status)", rank.rank, rank.rank);
  const RankSign& sign = *rank.sign;
  std::string text = format("{} {} ({} pid {}", rank.rank, rank.state, sign.host, sign.pid);
  if (sign.sequence >= 0) text += format(", \"{}\" {} ago", sign.name, duration_text(age_of(sign, now)));
  return text + ")";
}

std::string one_decimal(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.1f", value);
  return digits;
}

}  // namespace

std::vector<RankReading> read_ranks(const RunReading& run) {
  std::vector<RankReading> ranks;
  if (run.status->num_ranks < 2) return ranks;
  for (int rank = 0; rank < run.status->num_ranks; ++rank) {
    RankReading reading{rank, "unknown", read_rank_sign(run.dir + "/logs", rank)};
    // One from before this start is a predecessor's.
    if (reading.sign && reading.sign->on_this_host && reading.sign->time < run.status->started - 60) reading.sign = {};
    if (reading.sign) reading.state = state_of(*reading.sign);
    ranks.push_back(std::move(reading));
  }
  return ranks;
}

// Many that are alike are counted, the others named.
std::string describe_ranks(const std::vector<RankReading>& ranks, double now) {
  constexpr size_t kNamedAll = 8;
  std::string text, named;
  for (const char* state : {"alive", "elsewhere", "stopped", "gone", "unknown"}) {
    const auto count = std::count_if(ranks.begin(), ranks.end(), [&](const auto& rank) { return rank.state == state; });
    if (count > 0) text += format("{}{} {}", text.empty() ? "" : ", ", count, state);
  }
  for (const RankReading& rank : ranks)
    if (ranks.size() <= kNamedAll || (rank.state != "alive" && rank.state != "elsewhere"))
      named += format("{}{}", named.empty() ? "" : ", ", describe(rank, now));
  if (text.empty()) return "";
  return "ranks    " + text + (named.empty() ? "" : ": " + named) + "\n";
}

std::string describe_hub(const RunStatus::Hub& hub) {
  constexpr size_t kNamed = 16;
  std::string text =
      format("hub      {} workers, {} without a lease, {} leases; {} groups/s, {} groups since epoch {}",
             hub.num_workers, hub.num_idle, hub.num_leases, one_decimal(hub.groups_per_s), hub.num_groups, hub.epoch);
  if (hub.num_dropped_stale > 0) text += format(", {} dropped as too old", hub.num_dropped_stale);
  if (hub.num_failed > 0) text += format(", {} prompts failed", hub.num_failed);
  text += format("; weights of version {}, at {}\n", hub.version, hub.address);
  for (size_t i = 0; i < std::min(kNamed, hub.workers.size()); ++i) {
    const RunStatus::Hub::Worker& worker = hub.workers[i];
    text += format("         worker {}: {}, {} leases, heard {} s before\n", worker.name,
                   worker.version < 0 ? "no weights yet" : format("version {}", worker.version), worker.leases,
                   one_decimal(worker.silent_s));
  }
  if (hub.num_workers > static_cast<int64_t>(kNamed))
    text += format("         and {} more\n", hub.num_workers - static_cast<int64_t>(kNamed));
  return text;
}

nlohmann::ordered_json ranks_to_json(const std::vector<RankReading>& ranks, double now) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const RankReading& rank : ranks) {
    nlohmann::ordered_json entry = {{"rank", rank.rank}, {"state", rank.state}};
    if (rank.sign) {
      entry["host"] = rank.sign->host;
      entry["pid"] = rank.sign->pid;
      entry["operation"] = rank.sign->sequence;
      entry["last"] = rank.sign->name;
      entry["age_s"] = age_of(*rank.sign, now);
    }
    all.push_back(std::move(entry));
  }
  return all;
}

}  // namespace temper
