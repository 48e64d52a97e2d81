// hub.json of a run directory: where the hub of the run that is under way can be reached. The trainer writes it, in one
// piece, once its sockets are bound; workers read it. It holds no secret: whoever reads it still needs a worker's key.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace temper {

struct HubFile {
  std::string address = {};                        // of the hub, tcp://HOST:PORT
  std::string public_key = {};                     // the hub's (Z85); empty: plain text, on loopback
  std::vector<std::string> weight_addresses = {};  // one a trainer rank, with the same key
  std::string run_id = {};                         // of this start of the trainer: no two are alike
  std::string stage = {};                          // of the run's configuration, that rollouts are made for
  int64_t epoch = 0;  // counts the starts of the trainer; results of an older one are refused
  // The process that wrote it, to tell a run from what a dead one left behind. Filled in by write_hub_file.
  std::string host = {};
  int64_t pid = 0;
  int64_t process_start = 0;  // clock ticks since the machine started: a reused pid differs here
};

void write_hub_file(const std::string& path, HubFile hub);
// IoError where there is none (yet), FormatError where it is not one.
HubFile read_hub_file(const std::string& path);

// Why nobody answers there any more: "process 123 on this machine is gone". Nothing where the writer runs, or runs on
// another machine (then only a connection tells).
std::optional<std::string> why_stale(const HubFile& hub);

}  // namespace temper
