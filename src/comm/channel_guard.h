// A server's doorkeeper, in a thread of its own: it answers ZeroMQ's questions whether a client's key is on the list
// (ZAP, RFC 27: https://rfc.zeromq.org/spec/27/) and counts what happens to connections, so that neither waits for the
// thread that owns the channel. For channel_server.cpp.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "comm/zmq_socket.h"

namespace temper {

class ChannelGuard {
 public:
  // Before the router is bound; the router's events are watched from here on. allowed: public keys (Z85).
  ChannelGuard(const ZmqContext& context, ZmqSocket& router, const std::vector<std::string>& allowed);
  ~ChannelGuard();  // before the router is closed
  ChannelGuard(const ChannelGuard&) = delete;
  ChannelGuard& operator=(const ChannelGuard&) = delete;

  // Any thread.
  void allow(const std::string& public_key);
  // The files of connections that ended. Each is named several times over 2 s, for the event comes before the router
  // itself takes note.
  std::vector<int> take_disconnected();
  int disconnected_file() const { return disconnected_.file(); }  // readable when there are some
  void look() { disconnected_.look(); }                           // after a wait for it
  int64_t connections() const { return connections_; }
  int64_t handshakes_failed() const { return handshakes_failed_; }
  int64_t keys_refused() const { return keys_refused_; }

 private:
  void run();
  void answer();     // one question of ZAP, where there is one
  void see_event();  // one event of a connection
  void tell_disconnected(int file);

  ZmqSocket& router_;
  ZmqSocket questions_, events_;                                          // the thread's
  std::multimap<std::chrono::steady_clock::time_point, int> tell_again_;  // the thread's
  WakeUp stop_, disconnected_;
  std::mutex mutex_;
  std::set<std::string> allowed_;        // guarded by mutex_
  std::vector<int> disconnected_files_;  // guarded by mutex_
  std::atomic<int64_t> connections_ = 0, handshakes_failed_ = 0, keys_refused_ = 0;
  std::thread thread_;
};

}  // namespace temper
