// The rollout workers of this machine, as child processes: `temper rollout …`, each with a log file, started again
// within a second when it dies. One that ends with exit code 2 (its configuration or program is refused) stays down.
// They lead process groups of their own, so that Ctrl-C reaches the trainer alone, end when this process does, and run
// at a niceness: the trainer goes first.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace temper {

class WorkerFleet {
 public:
  // arguments: of `temper rollout`; --name is added. logs: folder of worker_N.log, which exists.
  WorkerFleet(int64_t num_workers, const std::vector<std::string>& arguments, const std::string& logs);
  ~WorkerFleet();  // asks them to leave, then ends them
  WorkerFleet(const WorkerFleet&) = delete;
  WorkerFleet& operator=(const WorkerFleet&) = delete;

  // ConfigError where every worker was refused: none will come back. Any thread.
  void check() const;

 private:
  struct Child {
    std::vector<std::string> command;
    std::string log;
    pid_t pid = -1;  // -1: down
    bool refused = false;
    std::chrono::steady_clock::time_point start_at = {};  // once it is down
  };

  void watch();
  void start(Child& child);
  void reap(Child& child, int status);
  void end_all();

  std::vector<Child> children_;  // of the watching thread
  std::vector<std::string> environment_;
  std::string logs_;
  std::atomic<bool> closing_ = false;
  std::atomic<size_t> num_refused_ = 0;
  std::thread thread_;  // outlives the children: the kernel ends them when it ends
};

}  // namespace temper
