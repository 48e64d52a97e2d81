// One trainer rank as a weight client sees it: its connection with a thread of its own, what it offers, and the fetch
// that is under way from it. For weight_client.cpp, which gives the orders and waits for what comes of them.
//
// Where the rank and this process both have links (comm/weight_link.h), the bytes come by one, in a second thread;
// after the first failure of it they come as messages, for as long as the connection lasts.
//
// Threads: all ranks of a client share the board's mutex, which the caller of each member function holds; only the
// thread inside works without it while it puts a chunk in its place.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "comm/channel.h"
#include "comm/weight_client.h"
#include "comm/weight_link.h"
#include "comm/weight_messages.h"
#include "comm/weight_set.h"

namespace temper {

struct WeightBoard {
  std::mutex mutex;
  std::condition_variable changed;  // anything of any rank
};

class WeightSource {
 public:
  enum class Phase {
    kIdle,
    kAsked,
    kListed,     // its manifest is here
    kReceiving,  // chunks go into the set
    kDone,       // all are there and checked
    kLost,       // the connection or the version is gone: try again
    kBroken,     // it sent what it must not; refusal() says what
  };

  WeightSource(size_t rank, const std::string& endpoint, const std::optional<ClientKeys>& keys,
               const WeightClientOptions& options, WeightBoard& board);
  ~WeightSource();  // without the mutex
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;

  // kIdle -> kAsked
  void ask(WeightRequest request);
  // kListed -> kReceiving. Both sets must live until it is no longer so and is_placing() is false.
  void receive_into(WeightSet& set, WeightSet* base);
  // -> kIdle, whatever it was; the rank is told to send no more.
  void cancel();

  Phase phase() const { return phase_; }
  bool is_placing() const { return placing_; }
  const std::optional<WeightOffer>& offer() const { return offer_; }  // nothing: no connection
  const WeightManifest& manifest() const { return manifest_; }        // from kListed on
  const std::string& refusal() const { return refusal_; }
  const std::exception_ptr& failure() const { return failure_; }  // of the thread itself, which has ended
  std::string describe() const;                                   // "rank 1 (tcp://...)"
  std::string progress() const;                                   // of what is under way, or why nothing is
  int64_t wire_bytes() const { return wire_bytes_; }
  double apply_s() const { return apply_s_; }

 private:
  void run();
  void send_order();
  void handle(const ChannelMessage& message);
  void on_offer(WeightOffer offer);
  void on_manifest(WeightManifest manifest);
  void on_chunk(const WeightChunk& chunk);
  void on_gone(int64_t request);
  void on_link_lost(int64_t request);
  void run_link();
  void receive_by_link();
  bool place_piece(int64_t request, std::string_view bytes);
  std::string link_id();
  void drop_link(const char* why);
  void enter(Phase phase);
  bool is_busy() const { return phase_ == Phase::kAsked || phase_ == Phase::kListed || phase_ == Phase::kReceiving; }

  const size_t rank_;
  const std::string endpoint_;
  ChannelClient channel_;  // the thread's, but for wake()
  WeightBoard& board_;
  const std::shared_ptr<WeightLinks> links_;  // null: none
  // Guarded by the board's mutex:
  bool quitting_ = false;
  Phase phase_ = Phase::kIdle;
  bool placing_ = false;
  std::optional<WeightOffer> offer_;
  WeightRequest request_;  // the last
  bool unsent_request_ = false, unsent_cancel_ = false;
  WeightManifest manifest_;
  WeightSet* set_ = nullptr;
  WeightSet* base_ = nullptr;
  int64_t num_placed_ = 0;
  std::string refusal_, connection_trouble_;
  std::exception_ptr failure_;
  int64_t wire_bytes_ = 0;
  double apply_s_ = 0;
  // Of the link:
  std::string link_id_;               // of the one that is connected, or being connected; empty: none
  std::unique_ptr<WeightLink> link_;  // used by its thread; made and reset with the mutex held
  bool link_wanted_ = false;          // its thread is to receive
  bool link_busy_ = false;            // it does
  bool link_failed_ = false;          // until the next connection
  std::thread link_thread_;
  std::thread thread_;
};

}  // namespace temper
