#include "comm/thread_communicator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <thread>

#include "core/clock.h"
#include "core/error.h"

namespace temper {
namespace {

using Operations = std::vector<std::shared_ptr<CommOperation>>;  // one a rank, null where it has not begun

// Bytes that one rank sends in a ring.
double wire_bytes(const CommOperation& operation, int size) {
  const double bytes = static_cast<double>(operation.size_bytes()), share = (size - 1.0) / size;
  switch (operation.kind) {
    case CommKind::kAllReduce:
      return 2 * share * bytes;
    case CommKind::kAllGather:
      return (size - 1.0) * bytes;
    case CommKind::kReduceScatter:
    case CommKind::kAllToAll:
      return share * bytes;
    case CommKind::kBroadcast:
      return bytes;
    case CommKind::kBarrier:
      return 0;
  }
  return 0;
}

at::Tensor part(const at::Tensor& whole, int64_t index, int64_t count) {
  const int64_t size = whole.numel() / count;
  return whole.view(-1).narrow(0, index * size, size);
}

at::Tensor reduced(const Operations& operations) {
  at::Tensor sum = operations.front()->in.clone();
  for (size_t r = 1; r < operations.size(); ++r) reduce_into(sum, operations[r]->in, operations[r]->op);
  return sum;
}

void carry_out(const Operations& operations) {
  const auto size = static_cast<int64_t>(operations.size());
  const CommKind kind = operations.front()->kind;
  if (kind == CommKind::kAllReduce || kind == CommKind::kReduceScatter) {
    const at::Tensor sum = reduced(operations);
    for (int64_t r = 0; r < size; ++r)
      operations[r]->out.view(-1).copy_(kind == CommKind::kAllReduce ? sum.view(-1) : part(sum, r, size));
  } else if (kind == CommKind::kAllGather) {
    for (const auto& to : operations)
      for (int64_t r = 0; r < size; ++r) {
        const at::Tensor target = part(to->out, r, size);
        if (target.data_ptr() != operations[r]->in.data_ptr()) target.copy_(operations[r]->in.view(-1));
      }
  } else if (kind == CommKind::kAllToAll) {
    std::vector<at::Tensor> given;
    for (const auto& from : operations) given.push_back(from->in.clone());
    for (int64_t to = 0; to < size; ++to)
      for (int64_t from = 0; from < size; ++from)
        part(operations[to]->out, from, size).copy_(part(given[from], to, size));
  } else if (kind == CommKind::kBroadcast) {
    const auto& root = operations[operations.front()->root];
    for (const auto& to : operations)
      if (to != root) to->out.copy_(root->in);
  }
}

// What a rank called in place of what rank 0 called; empty: the same.
std::string find_disagreement(const Operations& operations) {
  const CommOperation& first = *operations.front();
  for (const auto& other : operations)
    if (other->kind != first.kind || other->name != first.name || other->size_bytes() != first.size_bytes() ||
        other->op != first.op || other->root != first.root)
      return format("ranks are out of step: {}, but {}.", first.describe(), other->describe());
  return {};
}

struct Slot {
  Operations operations;
  int num_begun = 0;
};

// The ranks that share a communicator.
struct Group {
  std::vector<bool> gone;
  std::map<int64_t, Slot> slots;  // by sequence number: begun, not carried out
};

}  // namespace

struct ThreadWorld::State {
  State(int ranks, const CommOptions& comm_options, const SimulatedLink& simulated)
      : num_ranks(ranks), options(comm_options), link(simulated), worker([this] { work(); }) {}

  Group& group(const std::string& name, int size) {  // REQUIRES: mutex is held
    Group& found = groups[name];
    if (found.gone.empty()) found.gone.assign(static_cast<size_t>(size), false);
    return found;
  }

  void begin(const std::string& name, int size, const std::shared_ptr<CommOperation>& operation) {
    const std::lock_guard lock(mutex);
    if (!aborted.empty()) return operation->fail(aborted);
    Group& members = group(name, size);
    Slot& slot = members.slots[operation->sequence];
    slot.operations.resize(static_cast<size_t>(size));
    slot.operations[static_cast<size_t>(operation->rank)] = operation;
    ++slot.num_begun;
    fail_if_hopeless(members, slot);
    if (slot.num_begun < size) return;
    ready.push_back(std::move(slot.operations));
    members.slots.erase(operation->sequence);
    changed.notify_all();
  }

  // REQUIRES: mutex is held.
  void fail_if_hopeless(const Group& members, const Slot& slot) {
    for (size_t r = 0; r < slot.operations.size(); ++r) {
      if (!members.gone[r] || slot.operations[r]) continue;
      for (const auto& operation : slot.operations)
        if (operation) operation->fail(format("{} cannot finish: rank {} is gone.", operation->describe(), r));
    }
  }

  void leave(const std::string& name, int size, int rank) {
    const std::lock_guard lock(mutex);
    Group& members = group(name, size);
    members.gone[static_cast<size_t>(rank)] = true;
    for (const auto& [sequence, slot] : members.slots) fail_if_hopeless(members, slot);
  }

  void abort(const std::string& why) {
    const std::lock_guard lock(mutex);
    if (aborted.empty()) aborted = why;
    for (const auto& [name, members] : groups)
      for (const auto& [sequence, slot] : members.slots)
        for (const auto& operation : slot.operations)
          if (operation) operation->fail(aborted);
    for (const Operations& operations : ready)
      for (const auto& operation : operations) operation->fail(aborted);
    ready.clear();
  }

  std::string missing(const std::string& name, const CommOperation& operation) {
    const std::lock_guard lock(mutex);
    const auto members = groups.find(name);
    if (members == groups.end()) return {};
    const auto slot = members->second.slots.find(operation.sequence);
    if (slot == members->second.slots.end()) return {};
    std::vector<int> ranks;
    for (size_t r = 0; r < slot->second.operations.size(); ++r)
      if (!slot->second.operations[r]) ranks.push_back(static_cast<int>(r));
    return join_ranks(ranks);
  }

  // produces: finished operations; consumes: those that every rank has begun; waits for: begin();
  // is unblocked by: the last rank's begin(), or stop.
  void work() {
    const at::NoGradGuard no_grad;
    at::set_num_threads(1);
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return stop || !ready.empty(); });
      if (stop) return;
      const Operations operations = std::move(ready.front());
      ready.pop_front();
      lock.unlock();
      const Stopwatch watch;
      const std::string disagreement = find_disagreement(operations);
      if (disagreement.empty()) {
        std::this_thread::sleep_for(std::chrono::duration<double>(
            link.latency_s + (link.gb_per_s > 0 ? wire_bytes(*operations.front(), static_cast<int>(operations.size())) /
                                                      (link.gb_per_s * 1e9)
                                                : 0)));
        carry_out(operations);
        lock.lock();  // counted before the ranks go on, who may ask
        busy_s += watch.seconds();
        lock.unlock();
        for (const auto& operation : operations) operation->finish();
      } else {
        for (const auto& operation : operations) operation->fail(disagreement);
        abort(disagreement);
      }
      lock.lock();
    }
  }

  void end() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      changed.notify_all();
    }
    worker.join();
    abort("the world of thread ranks has ended.");
  }

  const int num_ranks;
  const CommOptions options;
  const SimulatedLink link;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Group> groups;  // guarded by mutex
  std::deque<Operations> ready;         // guarded by mutex
  std::string aborted;                  // guarded by mutex
  double busy_s = 0;                    // guarded by mutex
  bool stop = false;                    // guarded by mutex
  std::thread worker;                   // last: it uses all of the above
};

namespace {

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadWorld::State> state, std::string name, int rank, int size)
      : Communicator(rank, size, state->options), state_(std::move(state)), name_(std::move(name)) {}
  ~ThreadCommunicator() override { state_->leave(name_, size(), rank()); }

  std::unique_ptr<Communicator> split(int color, int key) override {
    const at::Tensor mine = at::tensor({int64_t{color}, int64_t{key}}, at::kLong);
    const at::Tensor all = at::empty({2 * size()}, at::kLong);
    all_gather("split", mine, all).wait();
    const auto* said = all.const_data_ptr<int64_t>();
    std::vector<std::pair<int64_t, int>> members;  // key, rank
    for (int r = 0; r < size(); ++r)
      if (said[2 * r] == color) members.emplace_back(said[2 * r + 1], r);
    std::sort(members.begin(), members.end());
    const auto me = std::find_if(members.begin(), members.end(), [this](const auto& m) { return m.second == rank(); });
    return std::make_unique<ThreadCommunicator>(state_, format("{}/{}:{}", name_, num_splits_++, color),
                                                static_cast<int>(me - members.begin()),
                                                static_cast<int>(members.size()));
  }

  void abort(const std::string& why) override { state_->abort(why); }

 protected:
  void start(const std::shared_ptr<CommOperation>& operation) override { state_->begin(name_, size(), operation); }
  std::string missing_ranks(const CommOperation& operation) const override { return state_->missing(name_, operation); }

 private:
  std::shared_ptr<ThreadWorld::State> state_;
  std::string name_;  // of the group of ranks
  int num_splits_ = 0;
};

}  // namespace

ThreadWorld::ThreadWorld(int num_ranks, const CommOptions& options, const SimulatedLink& link)
    : state_(std::make_shared<State>(num_ranks, options, link)) {
  TEMPER_CHECK(num_ranks > 0, "{} ranks", num_ranks);
}

ThreadWorld::~ThreadWorld() { state_->end(); }

std::unique_ptr<Communicator> ThreadWorld::communicator(int rank) {
  TEMPER_CHECK(0 <= rank && rank < state_->num_ranks, "rank {} of {}", rank, state_->num_ranks);
  return std::make_unique<ThreadCommunicator>(state_, "world", rank, state_->num_ranks);
}

double ThreadWorld::busy_s() const {
  const std::lock_guard lock(state_->mutex);
  return state_->busy_s;
}

}  // namespace temper
