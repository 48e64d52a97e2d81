// One trainer rank's end of the weight wire: it keeps the last few versions of the rank's shards and sends them to
// whoever asks, whole or as lossless deltas (comm/weight_delta.h) from a version that the reader has. Each rank has
// one; readers (comm/weight_client.h) put the ranks' parts together. The trainer's step waits for the copy in publish()
// and for nothing else: readers are served by a thread of its own, at most `max_transfers` at a time, the others in the
// order in which they asked.
//
// Memory: keep_versions copies of the rank's shards, their deltas (less than the shards themselves), and what a reader
// lets be under way for each transfer, at most 64 chunks. A version that is dropped while it is sent ends that
// transfer; its reader is told and takes a newer one, so keep_versions should cover the steps that a slow reader needs
// for one fetch.
//
// Threads: every member function may be called from any thread. What the serving thread fails with is logged and
// thrown by the next publish(). A reader's link (comm/weight_link.h) has a thread of its own, beside the turns.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/channel_keys.h"
#include "comm/weight_types.h"
#include "core/rollout_types.h"

namespace temper {

class WeightLinks;  // comm/weight_link.h

struct WeightServerOptions {
  int keep_versions = 3;          // at least 1; 1 serves no deltas
  int64_t chunk_bytes = 1 << 20;  // of weights in a message; a delta is encoded chunk by chunk
  int max_transfers = 8;
  std::chrono::milliseconds stall_timeout{10000};  // a reader that takes nothing for so long loses its turn
  bool allow_plain_text = false;                   // without keys; on loopback alone
  bool allow_all_interfaces = false;
  std::shared_ptr<WeightLinks> links = {};  // null: everything goes as messages
};

struct WeightServerCounters {
  int64_t versions = 0;                                                 // published
  int64_t full_transfers = 0, delta_transfers = 0, link_transfers = 0;  // finished
  int64_t ended_transfers = 0;             // not finished: the reader left, stalled, asked anew or its version went
  int64_t raw_bytes = 0, delta_bytes = 0;  // of weights, as they went over the wire
  int64_t link_bytes = 0;                  // by links
  double encode_s = 0;                     // spent on deltas
  int64_t readers = 0;                     // connected now
  int64_t refused = 0;                     // messages and connections
};

class WeightServer {
 public:
  // address: as ChannelServer's, tcp://HOST:PORT, port * for a free one; without keys plain text, which must be
  // allowed. ConfigError where a setting forbids it, CommError where it cannot be bound.
  WeightServer(const std::string& address, const std::optional<ServerKeys>& keys, WeightServerOptions options = {});
  ~WeightServer();
  WeightServer(const WeightServer&) = delete;
  WeightServer& operator=(const WeightServer&) = delete;

  const std::string& address() const;  // with the port
  // Copies the parts; when this returns, readers can have the version. Versions of one epoch rise; a greater epoch
  // drops all versions of the one before. Deltas need the same parts in the same order as the version before.
  // REQUIRES: each part's bytes are its elements' and its range lies in its shape; names with ranges occur once.
  void publish(int64_t epoch, PolicyVersion version, const std::vector<WeightPart>& parts);
  void allow(const std::string& public_key);  // one more reader
  WeightServerCounters counters() const;

 private:
  class Service;  // the serving thread and what it owns
  std::unique_ptr<Service> service_;
};

}  // namespace temper
