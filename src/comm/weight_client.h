// A worker process's end of the weight wire: fetches a version from all trainer ranks (comm/weight_server.h) at once
// and puts their parts together. Of a version it gets all or nothing: each chunk and each rank's whole are checked
// against their XXH3 checksums, the parts must cover every tensor exactly once and be of one epoch and version. Until
// all of that holds, what was fetched before stays as it is.
//
// Memory: two copies of the weights (the one in use and the one that comes), of a host's workers together where they
// share them; and a window of bytes a rank.
//
// Threads: one thread constructs, fetches and destroys; stop() alone may come from any. A thread a rank inside.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/channel_keys.h"
#include "comm/weight_types.h"
#include "core/rollout_types.h"

namespace temper {

class WeightLinks;  // comm/weight_link.h

struct WeightClientOptions {
  bool deltas = true;                           // ask for the difference to what is here, where a rank still has that
  int64_t max_message_bytes = 8 << 20;          // a rank's chunk_bytes and its list of parts must be less
  int64_t window_bytes = 32 << 20;              // under way from one rank; at least twice a message
  int64_t max_weight_bytes = int64_t{1} << 40;  // in total; a rank that announces more is refused before any allocation
  bool allow_plain_text = false;                // without keys; on loopback alone
  // Workers of one host and run share one copy of the weights in this folder (comm/host_weights.h), which should be in
  // memory: the first to want a version fetches it, the others map it. Empty: each has its own.
  std::string host_dir = {};                // "/dev/shm"
  std::string run_id = {};                  // of hub.json
  std::shared_ptr<WeightLinks> links = {};  // that ranks which have some too may send by; null: messages alone
  // One who fetches for the others and gets no chunk for so long may be stopped: then each fetches for itself.
  std::chrono::milliseconds host_patience{10000};
};

struct FetchedTensor {
  WeightDtype dtype = WeightDtype::kF32;
  std::vector<int64_t> shape;
  std::string_view bytes;  // row-major, little-endian; starts at a multiple of 64
};

// One whole version. The bytes stay as they are until the next fetch() begins to return another version: a fetch that
// throws leaves them alone.
struct FetchedWeights {
  int64_t epoch = 0;
  PolicyVersion version = -1;  // -1: none yet
  std::map<std::string, FetchedTensor> tensors;
};

struct WeightClientCounters {
  int64_t fetches = 0;                       // that brought a new version
  int64_t full_parts = 0, delta_parts = 0;   // of these, rank by rank
  int64_t link_parts = 0;                    // of the full ones, by links
  int64_t weight_bytes = 0, wire_bytes = 0;  // what they brought, and what came over the wire for it
  int64_t retries = 0;                       // begun anew: a connection was lost or the version went
  int64_t host_copies = 0;                   // of these, another worker of the host had fetched
  int64_t refused = 0;                       // updates refused as torn, short, corrupt or foreign
  double apply_s = 0;                        // spent on checking and putting together, over all threads
};

class WeightClient {
 public:
  // endpoints: one a trainer rank, as Welcome::weights_endpoints or hub.json have them. Connects in the background.
  // ConfigError where a setting forbids it.
  WeightClient(std::vector<std::string> endpoints, const std::optional<ClientKeys>& keys,
               WeightClientOptions options = {});
  ~WeightClient();
  WeightClient(const WeightClient&) = delete;
  WeightClient& operator=(const WeightClient&) = delete;

  const std::vector<std::string>& endpoints() const { return endpoints_; }
  // The newest version that all ranks have, at least that one; at once where it is here already. Blocks while it is
  // not published yet or a rank cannot be reached. Lost connections and versions that went are tried again until the
  // deadline. CommError at the deadline, after stop(), or where a rank is of a later epoch; FormatError where a rank
  // sends what is no such version: torn, short, corrupt, or not fitting the others. The reference stays valid.
  const FetchedWeights& fetch(int64_t epoch, PolicyVersion at_least, std::chrono::steady_clock::time_point deadline);
  const FetchedWeights& current() const;  // what the last good fetch returned
  // Ends the fetch that is under way and every later one.
  void stop();
  WeightClientCounters counters() const;

 private:
  class Fetcher;  // the ranks' threads and what they share
  std::vector<std::string> endpoints_;
  std::unique_ptr<Fetcher> fetcher_;
};

}  // namespace temper
