// The engine behind the API: threads of the HTTP server hand requests in and wait for what comes of them; one thread,
// the one in run(), owns the engine, steps it, and puts tokens and results into each request's mailbox. Continuous
// batching over all requests is the engine's own.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "rollout/engine.h"

namespace temper {

// What has come since the last look. An empty one: nothing yet.
struct Mail {
  bool accepted = false;                  // the engine has taken the request
  std::string refusal;                    // why it has not; nothing follows
  std::vector<StepToken> tokens;          // of streams; id is the prompt's index in the request
  std::vector<GenerationResult> results;  // one a prompt, when its completions are all done; id as above
  bool closed = false;                    // the engine is gone: nothing follows
};

struct ServeStats {
  EngineStats engine;  // after the last step
  int64_t num_accepted = 0, num_refused = 0, num_cancelled = 0, num_queue_full = 0;
  int64_t num_completions = 0;  // in the server: running, waiting, or being written
};

class ServeEngine {
 public:
  // At most `max_completions` are in the server at a time. The engine outlives this.
  ServeEngine(Engine& engine, int64_t max_completions);
  ServeEngine(const ServeEngine&) = delete;
  ServeEngine& operator=(const ServeEngine&) = delete;

  // A request's place in the server, given up by its destructor: what is unfinished then is cancelled.
  class Ticket {
   public:
    Ticket(ServeEngine& owner, int64_t id) : owner_(&owner), id_(id) {}
    ~Ticket() { owner_->withdraw(id_); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    // What has come; waits for something up to `timeout`.
    Mail take(std::chrono::milliseconds timeout) { return owner_->take(id_, timeout); }

   private:
    ServeEngine* owner_;
    int64_t id_;
  };

  // Any thread. The prompts' ids are given here. Null: no room (draining() tells why).
  std::unique_ptr<Ticket> submit(std::vector<GenerationRequest> prompts, bool stream);
  ServeStats stats() const;
  bool draining() const;

  // Steps the engine until stop_requested() (asked ten times a second at least), then takes nothing new and goes on
  // until all is answered, for drain_timeout_s at most. What the engine throws comes through. However it ends, nobody
  // waits for mail any more.
  void run(const std::function<bool()>& stop_requested, double drain_timeout_s);

 private:
  struct Box {
    int64_t id = 0;  // of the first prompt
    int64_t num_prompts = 0, num_completions = 0;
    size_t num_unfinished = 0;  // prompts
    bool stream = false;
    Mail mail;
    std::condition_variable arrived;
  };
  struct Submission {
    int64_t id = 0;
    std::vector<GenerationRequest> prompts;
  };
  struct Cancellation {
    int64_t id = 0;
    int64_t num_prompts = 0;
  };
  using Order = std::variant<Submission, Cancellation>;

  Mail take(int64_t id, std::chrono::milliseconds timeout);
  void withdraw(int64_t id);
  Box* box_of(int64_t prompt_id);
  std::vector<Order> take_orders(std::chrono::milliseconds timeout);
  void carry_out(Submission submission);
  void carry_out(const Cancellation& cancellation);
  void deliver(std::vector<GenerationResult> results);
  void close();

  Engine& engine_;
  const int64_t max_completions_;
  mutable std::mutex mutex_;
  std::condition_variable ordered_;
  std::vector<Order> orders_;     // guarded by mutex_
  std::map<int64_t, Box> boxes_;  // guarded by mutex_; by id: those of the prompts are id, id + 1, …
  int64_t next_id_ = 0;           // guarded by mutex_
  bool draining_ = false;         // guarded by mutex_
  bool closed_ = false;           // guarded by mutex_
  ServeStats stats_;              // guarded by mutex_
};

}  // namespace temper
