#include "comm/weight_client.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "comm/host_weights.h"
#include "comm/weight_messages.h"
#include "comm/weight_set.h"
#include "comm/weight_source.h"
#include "core/error.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;
using Phase = WeightSource::Phase;
using Lock = std::unique_lock<std::mutex>;

constexpr std::chrono::milliseconds kHostLook{2};  // whether another worker of the host has come to an end

struct EndOfHostFetch {
  HostWeights* host;
  ~EndOfHostFetch() {
    if (host != nullptr) host->end();
  }
};

}  // namespace

class WeightClient::Fetcher {
 public:
  Fetcher(const std::vector<std::string>& endpoints, const std::optional<ClientKeys>& keys,
          const WeightClientOptions& options)
      : options_(options) {
    if (endpoints.empty()) throw ConfigError("weights: no trainer rank to fetch from was given.");
    for (size_t rank = 0; rank < endpoints.size(); ++rank)
      sources_.push_back(std::make_unique<WeightSource>(rank, endpoints[rank], keys, options, board_));
    if (!options.host_dir.empty()) host_.emplace(options.host_dir, options.run_id);
  }

  const FetchedWeights& fetch(int64_t epoch, PolicyVersion at_least, Clock::time_point deadline) {
    Lock lock(board_.mutex);
    deadline_ = deadline;
    Clock::time_point patience;  // with another worker that fetches for this one
    int64_t seen = -1;           // of its progress
    while (true) {
      const PolicyVersion version = wait_for_offers(lock, epoch, at_least);
      if (view_.epoch == epoch && view_.version >= version) return view_;
      if (host_ && take_from_host(epoch, at_least)) return view_;
      const bool for_host = host_ && host_->try_begin();
      if (host_ && !for_host && is_patient(seen, patience)) {
        wait(lock, format("weights of version {} from another worker of this host", version), Clock::now() + kHostLook);
        continue;
      }
      const EndOfHostFetch end{for_host ? &*host_ : nullptr};
      if (for_host && take_from_host(epoch, at_least)) return view_;  // it came just before
      if (fetch_version(lock, epoch, version, for_host)) return view_;
      ++counters_.retries;
    }
  }

  const FetchedWeights& current() const { return view_; }

  void stop() {
    const std::lock_guard lock(board_.mutex);
    stopped_ = true;
    board_.changed.notify_all();
  }

  WeightClientCounters counters() const {
    const std::lock_guard lock(board_.mutex);
    WeightClientCounters counters = counters_;
    for (const auto& source : sources_) {
      counters.wire_bytes += source->wire_bytes();
      counters.apply_s += source->apply_s();
    }
    return counters;
  }

 private:
  PolicyVersion wait_for_offers(Lock& lock, int64_t epoch, PolicyVersion at_least);
  std::optional<PolicyVersion> newest_of_all(int64_t epoch, PolicyVersion at_least) const;
  bool is_patient(int64_t& seen, Clock::time_point& until) const;
  bool take_from_host(int64_t epoch, PolicyVersion at_least);
  bool fetch_version(Lock& lock, int64_t epoch, PolicyVersion version, bool for_host);
  void ask_all(int64_t epoch, PolicyVersion version);
  bool wait_for_all(Lock& lock, Phase phase, PolicyVersion version, bool for_host);
  std::unique_ptr<WeightSet> make_set(bool for_host);
  void take(std::unique_ptr<WeightSet> next);
  void cancel_all(Lock& lock);
  void wait(Lock& lock, const std::string& for_what) { wait(lock, for_what, deadline_); }
  void wait(Lock& lock, const std::string& for_what, Clock::time_point until);
  template <class... Args>
  [[noreturn]] void refuse(std::string_view text, const Args&... args);
  size_t num_ranks() const { return sources_.size(); }

  const WeightClientOptions options_;
  mutable WeightBoard board_;
  // Guarded by the board's mutex:
  Clock::time_point deadline_;  // of the fetch under way
  bool stopped_ = false;
  int64_t last_request_ = 0;
  WeightClientCounters counters_;
  // The calling thread's; the ranks' threads read the set while they place chunks of the next one:
  std::unique_ptr<WeightSet> current_;   // null: none yet
  std::unique_ptr<WeightMemory> spare_;  // of spare_bytes_, for the next one
  int64_t spare_bytes_ = -1;
  std::optional<HostWeights> host_;                     // where the host's workers share
  FetchedWeights view_;                                 // of current_
  std::vector<std::unique_ptr<WeightSource>> sources_;  // by rank; their threads end first
};

// Until every rank has a version that is new enough; the newest of these.
PolicyVersion WeightClient::Fetcher::wait_for_offers(Lock& lock, int64_t epoch, PolicyVersion at_least) {
  while (true) {
    for (const auto& source : sources_)
      if (source->offer() && source->offer()->epoch > epoch)
        throw CommError("weights of epoch {} are over: {} is of epoch {}. Ask the hub again.", epoch,
                        source->describe(), source->offer()->epoch);
    if (const auto version = newest_of_all(epoch, at_least)) return *version;
    wait(lock, format("weights of epoch {}, version {} or newer", epoch, at_least));
  }
}

std::optional<PolicyVersion> WeightClient::Fetcher::newest_of_all(int64_t epoch, PolicyVersion at_least) const {
  std::map<PolicyVersion, size_t> num_ranks_with;
  for (const auto& source : sources_)
    if (source->offer() && source->offer()->epoch == epoch)
      for (const PolicyVersion version : source->offer()->versions) ++num_ranks_with[version];
  for (auto at = num_ranks_with.rbegin(); at != num_ranks_with.rend() && at->first >= at_least; ++at)
    if (at->second == num_ranks()) return at->first;
  return std::nullopt;
}

// Until the worker that fetches for the host has not got on for too long.
bool WeightClient::Fetcher::is_patient(int64_t& seen, Clock::time_point& until) const {
  const int64_t progress = host_->progress();
  if (progress != seen) until = Clock::now() + options_.host_patience;
  seen = progress;
  return Clock::now() < until;
}

// Where another worker of this host has fetched one that is new enough.
bool WeightClient::Fetcher::take_from_host(int64_t epoch, PolicyVersion at_least) {
  const PolicyVersion newer_than = view_.epoch == epoch ? std::max(view_.version, at_least - 1) : at_least - 1;
  auto found = host_->find(epoch, newer_than, options_.max_weight_bytes);
  if (found == nullptr) return false;
  ++counters_.host_copies;
  take(std::move(found));
  return true;
}

// False where a rank was lost on the way, or the version went: then what there is now is to be looked at anew.
bool WeightClient::Fetcher::fetch_version(Lock& lock, int64_t epoch, PolicyVersion version, bool for_host) {
  std::unique_ptr<WeightSet> next;
  bool all = false;
  try {
    ask_all(epoch, version);
    if (wait_for_all(lock, Phase::kListed, version, for_host)) {
      next = make_set(for_host);
      for (const auto& source : sources_) source->receive_into(*next, current_.get());
      all = wait_for_all(lock, Phase::kDone, version, for_host);
    }
  } catch (...) {
    cancel_all(lock);  // no thread may go on placing into a set that goes
    throw;
  }
  cancel_all(lock);
  if (!all) return false;
  if (for_host) host_->commit(epoch, version);
  counters_.weight_bytes += next->size_bytes();
  for (const WeightManifest& manifest : next->manifests()) {
    ++(manifest.base >= 0 ? counters_.delta_parts : counters_.full_parts);
    counters_.link_parts += manifest.route == WeightRoute::kLink ? 1 : 0;
  }
  take(std::move(next));
  return true;
}

void WeightClient::Fetcher::ask_all(int64_t epoch, PolicyVersion version) {
  ++last_request_;
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    WeightRequest request{.request = last_request_, .epoch = epoch, .version = version};
    if (options_.deltas && current_ != nullptr && view_.epoch == epoch) {
      request.base = view_.version;
      request.base_checksum = current_->manifests()[rank].checksum;
    }
    sources_[rank]->ask(std::move(request));
  }
}

bool WeightClient::Fetcher::wait_for_all(Lock& lock, Phase phase, PolicyVersion version, bool for_host) {
  while (true) {
    bool all = true;
    for (const auto& source : sources_) {
      if (source->phase() == Phase::kLost) return false;
      if (source->phase() == Phase::kBroken) refuse("{}: {}", source->describe(), source->refusal());
      all = all && source->phase() == phase;
    }
    if (all) return true;
    wait(lock, format("weights of version {}", version));
    if (for_host) host_->note_progress();
  }
}

std::unique_ptr<WeightSet> WeightClient::Fetcher::make_set(bool for_host) {
  std::vector<WeightManifest> manifests;
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    manifests.push_back(sources_[rank]->manifest());
    if (manifests.back().base >= 0 && !same_parts(manifests.back().parts, current_->manifests()[rank].parts))
      refuse("{}: sends differences to other parts than version {} has here", sources_[rank]->describe(),
             view_.version);
  }
  try {
    WeightLayout layout(manifests, options_.max_weight_bytes);
    std::unique_ptr<WeightMemory> memory = for_host ? host_->create(manifests, layout.size_bytes())
                                           : spare_bytes_ == layout.size_bytes()
                                               ? std::move(spare_)
                                               : allocate_weights(layout.size_bytes());
    if (!for_host) spare_bytes_ = -1;
    return std::make_unique<WeightSet>(std::move(manifests), std::move(layout), std::move(memory));
  } catch (const FormatError& error) {  // with what becomes of it
    refuse("{}", error.what());
  }
}

void WeightClient::Fetcher::take(std::unique_ptr<WeightSet> next) {
  ++counters_.fetches;
  std::swap(current_, next);
  view_ = current_->view();
  if (next == nullptr) return;
  const int64_t size_bytes = next->size_bytes();
  std::unique_ptr<WeightMemory> memory = next->take_memory();
  if (memory->is_shared()) return;
  spare_ = std::move(memory);
  spare_bytes_ = size_bytes;
}

void WeightClient::Fetcher::cancel_all(Lock& lock) {
  for (const auto& source : sources_) source->cancel();
  board_.changed.wait(lock, [&] {
    return std::none_of(sources_.begin(), sources_.end(), [](const auto& source) { return source->is_placing(); });
  });
}

// Until something has changed or the time has come. CommError at the deadline, after stop(), or where a thread has
// failed.
void WeightClient::Fetcher::wait(Lock& lock, const std::string& for_what, Clock::time_point until) {
  if (stopped_) throw CommError("{}: the fetch was stopped.", for_what);
  for (const auto& source : sources_)
    if (source->failure() != nullptr) std::rethrow_exception(source->failure());
  board_.changed.wait_until(lock, std::min(until, deadline_));
  if (Clock::now() < deadline_) return;
  std::vector<std::string> states;
  for (const auto& source : sources_)
    if (source->phase() != Phase::kDone) states.push_back(source->progress());
  throw CommError("{} did not come in time: {}. The version before stays in use.", for_what, join(states, "; "));
}

template <class... Args>
void WeightClient::Fetcher::refuse(std::string_view text, const Args&... args) {
  ++counters_.refused;
  throw FormatError("an update of weights is refused, {}. {} stays in use.", format(text, args...),
                    view_.version < 0 ? "What there was before" : format("Version {}", view_.version));
}

WeightClient::WeightClient(std::vector<std::string> endpoints, const std::optional<ClientKeys>& keys,
                           WeightClientOptions options)
    : endpoints_(std::move(endpoints)), fetcher_(std::make_unique<Fetcher>(endpoints_, keys, options)) {}
WeightClient::~WeightClient() = default;
const FetchedWeights& WeightClient::fetch(int64_t epoch, PolicyVersion at_least, Clock::time_point deadline) {
  return fetcher_->fetch(epoch, at_least, deadline);
}
const FetchedWeights& WeightClient::current() const { return fetcher_->current(); }
void WeightClient::stop() { fetcher_->stop(); }
WeightClientCounters WeightClient::counters() const { return fetcher_->counters(); }

}  // namespace temper
