// The sending end of one reader's link, in a thread of its own: the server goes on with its other readers meanwhile.
// For weight_server.cpp.
//
// Threads: one constructs, sends, aborts and destroys.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "comm/weight_link.h"
#include "comm/weight_version.h"

namespace temper {

class WeightLinkSender {
 public:
  // done: of a request, from the thread; after a failure, which it logs, there is nothing more to come.
  using Done = std::function<void(int64_t request, bool sent)>;
  WeightLinkSender(std::shared_ptr<WeightLinks> links, std::string id, Done done);
  ~WeightLinkSender();  // aborts; waits for the thread, which may take as long as connecting does
  WeightLinkSender(const WeightLinkSender&) = delete;
  WeightLinkSender& operator=(const WeightLinkSender&) = delete;

  const std::string& id() const { return id_; }
  // In their order. Once it has ended, nothing comes of it but done(request, false).
  void send(int64_t request, std::shared_ptr<const WeightVersion> version);
  void abort();
  bool ended() const;  // the thread is over

 private:
  using Job = std::pair<int64_t, std::shared_ptr<const WeightVersion>>;

  void run();
  void work();

  const std::shared_ptr<WeightLinks> links_;
  const std::string id_;
  const Done done_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;              // guarded by mutex_, as what follows
  std::unique_ptr<WeightLink> link_;  // used by the thread; reset with the mutex held
  bool aborted_ = false, ended_ = false;
  std::thread thread_;
};

}  // namespace temper
