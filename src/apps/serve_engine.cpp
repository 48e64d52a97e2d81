#include "apps/serve_engine.h"

#include <optional>
#include <utility>

#include "core/clock.h"
#include "core/error.h"

namespace temper {
namespace {
constexpr std::chrono::milliseconds kIdleWait{100};
}

ServeEngine::ServeEngine(Engine& engine, int64_t max_completions) : engine_(engine), max_completions_(max_completions) {
  stats_.engine = engine_.stats();
}

std::unique_ptr<ServeEngine::Ticket> ServeEngine::submit(std::vector<GenerationRequest> prompts, bool stream) {
  const std::lock_guard lock(mutex_);
  int64_t num_completions = 0;
  for (const GenerationRequest& prompt : prompts) num_completions += prompt.num_completions;
  if (draining_ || closed_) return nullptr;
  if (stats_.num_completions + num_completions > max_completions_) {
    ++stats_.num_queue_full;
    return nullptr;
  }
  const int64_t id = next_id_;
  next_id_ += static_cast<int64_t>(prompts.size());
  Box& box = boxes_[id];
  box.id = id;
  box.num_prompts = static_cast<int64_t>(prompts.size());
  box.num_unfinished = prompts.size();
  box.num_completions = num_completions;
  box.stream = stream;
  stats_.num_completions += num_completions;
  for (size_t i = 0; i < prompts.size(); ++i) prompts[i].id = id + static_cast<int64_t>(i);
  orders_.emplace_back(Submission{id, std::move(prompts)});
  ordered_.notify_one();
  return std::make_unique<Ticket>(*this, id);
}

Mail ServeEngine::take(int64_t id, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  Box& box = boxes_.at(id);
  const auto something = [&] {
    const Mail& mail = box.mail;
    return closed_ || mail.accepted || !mail.refusal.empty() || !mail.tokens.empty() || !mail.results.empty();
  };
  box.arrived.wait_for(lock, timeout, something);
  Mail mail = std::move(box.mail);
  box.mail = {};
  mail.closed = closed_;
  return mail;
}

void ServeEngine::withdraw(int64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = boxes_.find(id);
  stats_.num_completions -= found->second.num_completions;
  if (found->second.num_unfinished > 0) {
    ++stats_.num_cancelled;
    orders_.emplace_back(Cancellation{id, found->second.num_prompts});
  }
  boxes_.erase(found);
  ordered_.notify_one();
}

// The mailbox of the request to which a prompt belongs. REQUIRES: mutex_ is held.
ServeEngine::Box* ServeEngine::box_of(int64_t prompt_id) {
  auto next = boxes_.upper_bound(prompt_id);
  if (next == boxes_.begin()) return nullptr;
  Box& box = std::prev(next)->second;
  return prompt_id < box.id + box.num_prompts ? &box : nullptr;
}

ServeStats ServeEngine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

bool ServeEngine::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_ || closed_;
}

// Produces: mail of each request.   Consumes: orders (submit, withdraw).   Waits for: an order, where the engine is
// idle.   Is unblocked by: submit, withdraw, and every kIdleWait to ask whether to stop.
void ServeEngine::run(const std::function<bool()>& stop_requested, double drain_timeout_s) {
  struct Closer {
    ServeEngine& owner;
    ~Closer() { owner.close(); }
  } const closer{*this};

  std::optional<Stopwatch> since_stop;
  while (true) {
    for (Order& order : take_orders(engine_.idle() ? kIdleWait : std::chrono::milliseconds(0)))
      std::visit([&](auto& each) { carry_out(std::move(each)); }, order);
    if (!since_stop && stop_requested()) {
      const std::lock_guard lock(mutex_);
      draining_ = true;
      since_stop.emplace();
    }
    if (since_stop) {
      const std::lock_guard lock(mutex_);
      if (boxes_.empty() || since_stop->seconds() > drain_timeout_s) return;
    }
    deliver(engine_.step());
  }
}

std::vector<ServeEngine::Order> ServeEngine::take_orders(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  ordered_.wait_for(lock, timeout, [&] { return !orders_.empty(); });
  return std::exchange(orders_, {});
}

// All prompts of a request, or none.
void ServeEngine::carry_out(Submission submission) {
  std::string refusal;
  const auto num_prompts = static_cast<int64_t>(submission.prompts.size());
  try {
    for (GenerationRequest& prompt : submission.prompts) engine_.submit(std::move(prompt));
  } catch (const ConfigError& error) {  // this request's fault, and its answer
    refusal = error.what();
    for (int64_t i = 0; i < num_prompts; ++i) engine_.cancel(submission.id + i);
  }
  const std::lock_guard lock(mutex_);
  ++(refusal.empty() ? stats_.num_accepted : stats_.num_refused);
  Box* box = box_of(submission.id);
  if (box == nullptr) return;  // withdrawn meanwhile: its cancellation is in orders_
  if (!refusal.empty()) box->num_unfinished = 0;
  box->mail.accepted = refusal.empty();
  box->mail.refusal = std::move(refusal);
  box->arrived.notify_one();
}

void ServeEngine::carry_out(const Cancellation& cancellation) {
  for (int64_t i = 0; i < cancellation.num_prompts; ++i) engine_.cancel(cancellation.id + i);
}

void ServeEngine::deliver(std::vector<GenerationResult> results) {
  const std::lock_guard lock(mutex_);
  for (StepToken token : engine_.step_tokens()) {
    Box* box = box_of(token.id);
    if (box == nullptr || !box->stream) continue;
    token.id -= box->id;
    box->mail.tokens.push_back(token);
    box->arrived.notify_one();
  }
  for (GenerationResult& result : results) {
    Box* box = box_of(result.id);
    if (box == nullptr) continue;
    --box->num_unfinished;
    result.id -= box->id;
    box->mail.results.push_back(std::move(result));
    box->arrived.notify_one();
  }
  stats_.engine = engine_.stats();
}

void ServeEngine::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [id, box] : boxes_) box.arrived.notify_all();
}

}  // namespace temper
