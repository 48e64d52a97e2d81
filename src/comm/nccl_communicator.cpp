#include "comm/nccl_communicator.h"

#include "core/error.h"

#if TEMPER_WITH_NCCL
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

// After an operation's time, before the watching thread ends it: a caller who waits does so first and names late ranks.
constexpr std::chrono::seconds kGrace{1};
// Of what NCCL does at the end. Past it the process goes on without.
constexpr std::chrono::seconds kEndTime{30};
constexpr std::chrono::microseconds kPause{30};

void check_cuda(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(format("{}: CUDA says: {}", what, cudaGetErrorString(code)));
}

std::string error_text(ncclResult_t code) {
  if (code == ncclInProgress) return "not done in its time: a rank is late or gone. See that rank's log.";
  const std::string last = ncclGetLastError(nullptr);
  const bool shared_gpu = last.find("Duplicate GPU") != std::string::npos;
  return format("NCCL says: {} ({}). {}", ncclGetErrorString(code), last.empty() ? "no more" : last,
                shared_gpu ? "Every rank needs a GPU of its own: start as many ranks on a machine as it has GPUs."
                           : "See the log of the rank that ended first; NCCL_DEBUG=INFO tells more.");
}

ncclConfig_t non_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

// A point in a stream.
class Event {
 public:
  explicit Event(cudaStream_t stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event");
    check_cuda(cudaEventRecord(event_, stream), "an event");
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  void hold_back(cudaStream_t stream) const { check_cuda(cudaStreamWaitEvent(stream, event_), "wait for an event"); }
  cudaError_t state() const {  // cudaErrorNotReady: not reached
    const cudaError_t code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) cudaGetLastError();  // or the next check would find it
    return code;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// What carries the GPU tensors of one communicator.
struct Link {
  explicit Link(int device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, static_cast<c10::DeviceIndex>(device))) {}
  ncclComm_t comm = nullptr;  // guarded by World's mutex; null once it has ended
  c10::cuda::CUDAStream stream;
};

struct InFlight {
  std::shared_ptr<CommOperation> operation;
  Link* link;
  Event done;
};

// A communicator with all that split() made of it. Calls of NCCL are made with the mutex held: none blocks, and those
// that ask for the state must not meet.
class World {
 public:
  World(std::shared_ptr<Communicator> host, int gpu)
      : device(gpu), host_(std::move(host)), watcher_([this] { watch(); }) {}

  ~World() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    watcher_.join();
  }

  std::shared_ptr<Link> add_link() {
    const std::lock_guard lock(mutex_);
    links_.push_back(std::make_shared<Link>(device));
    return links_.back();
  }

  // Starts something and waits until NCCL has taken it: NCCL allows no other call before. ncclInProgress at the
  // deadline. CommError once aborted.
  template <class Start>
  ncclResult_t call(const Link& link, Clock::time_point deadline, const Start& start) {
    for (int64_t polls = 0;; ++polls) {
      {
        const std::lock_guard lock(mutex_);
        if (!aborted_.empty()) throw CommError("{}", aborted_);
        ncclResult_t state = polls == 0 ? start() : ncclSuccess;
        // Some calls say success when they have only begun.
        if (state == ncclSuccess || state == ncclInProgress)
          if (const ncclResult_t asked = ncclCommGetAsyncError(link.comm, &state); asked != ncclSuccess) return asked;
        if (state != ncclInProgress) return state;
      }
      if (Clock::now() > deadline) return ncclInProgress;
      if (polls < 1000)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(kPause);
    }
  }

  // From now on the operation ends when `done` is reached.
  void track(const std::shared_ptr<CommOperation>& operation, Link& link, Event done) {
    const std::lock_guard lock(mutex_);
    if (!aborted_.empty()) return operation->fail(aborted_);
    in_flight_.push_back({operation, &link, std::move(done)});
    changed_.notify_all();
  }

  // Until nothing of the link is under way. CommError once aborted.
  void drain(const Link& link) {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return !aborted_.empty() || is_idle(link); });
    if (!aborted_.empty()) throw CommError("{}", aborted_);
  }

  void abort(const std::string& why) {
    std::vector<std::shared_ptr<Link>> links;
    {
      const std::lock_guard lock(mutex_);
      if (!aborted_.empty()) return;
      aborted_ = why.empty() ? "the communicator was aborted." : why;
      for (const InFlight& each : in_flight_) each.operation->fail(aborted_);
      in_flight_.clear();
      links = links_;
      ended_.notify_all();
    }
    host_->abort(why);
    // In the order in which they were made: the end of a parent ends the making of a child.
    for (const auto& link : links) end(*link, ncclCommAbort);
  }

  [[noreturn]] void fail(const std::string& why) {
    abort(why);
    throw CommError("{}", why);
  }

  // The end of one communicator. In order: nothing is under way and no exception either.
  void leave(const std::shared_ptr<Link>& link, bool in_order) {
    {
      const std::lock_guard lock(mutex_);
      if (!aborted_.empty()) return;  // abort() ends it
      in_order = in_order && is_idle(*link);
      std::erase_if(in_flight_, [&](const InFlight& each) {
        if (each.link == link.get()) each.operation->fail(each.operation->describe() + ": its communicator is gone.");
        return each.link == link.get();
      });
    }
    if (in_order)
      in_order = call(*link, Clock::now() + kEndTime, [&] { return ncclCommFinalize(link->comm); }) == ncclSuccess;
    end(*link, in_order ? ncclCommDestroy : ncclCommAbort);
    const std::lock_guard lock(mutex_);
    std::erase(links_, link);
  }

  const int device;

 private:
  bool is_idle(const Link& link) const {  // REQUIRES: mutex_ is held
    return std::none_of(in_flight_.begin(), in_flight_.end(), [&](const auto& each) { return each.link == &link; });
  }

  // In a thread that is left behind where NCCL does not return: the job must come to its end all the same.
  void end(Link& link, ncclResult_t (*how)(ncclComm_t)) {
    ncclComm_t comm;
    {
      const std::lock_guard lock(mutex_);
      comm = std::exchange(link.comm, nullptr);
    }
    if (comm == nullptr) return;
    auto ended = std::make_shared<std::promise<void>>();
    const std::future<void> end = ended->get_future();
    std::thread([comm, how, ended, gpu = device] {
      cudaSetDevice(gpu);
      how(comm);
      ended->set_value();
    }).detach();
    if (end.wait_for(kEndTime) != std::future_status::ready)
      log_error("NCCL has not ended its communicator in {} s; the process goes on without.", kEndTime.count());
  }

  // produces: finished operations; consumes: those under way; waits for: track(), then for the clock;
  // is unblocked by: track(), or stop.
  void watch() {
    cudaSetDevice(device);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || !in_flight_.empty(); });
      if (stop_) return;
      const std::string failure = progress();
      lock.unlock();
      if (failure.empty())
        std::this_thread::sleep_for(kPause);
      else
        abort(failure);
      lock.lock();
    }
  }

  // Finishes what is done; says what is wrong with the rest. REQUIRES: mutex_ is held.
  std::string progress() {
    std::string failure;
    std::erase_if(in_flight_, [&](const InFlight& each) {
      const cudaError_t state = each.done.state();
      if (state == cudaSuccess) {
        each.operation->finish();
        return true;
      }
      if (failure.empty()) failure = trouble(each, state);
      return false;
    });
    ended_.notify_all();
    return failure;
  }

  std::string trouble(const InFlight& each, cudaError_t state) const {
    const std::string what = each.operation->describe();
    if (state != cudaErrorNotReady)
      return format("{}: CUDA says: {}. CUDA_LAUNCH_BLOCKING=1 shows where.", what, cudaGetErrorString(state));
    ncclResult_t error = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(each.link->comm, &error);
    if (asked != ncclSuccess) error = asked;
    if (error != ncclSuccess && error != ncclInProgress) return format("{}: {}", what, error_text(error));
    if (Clock::now() > each.operation->deadline + kGrace) return format("{}: {}", what, error_text(ncclInProgress));
    return {};
  }

  const std::shared_ptr<Communicator> host_;  // shared with the outermost communicator, which split() may outlive
  std::mutex mutex_;
  std::condition_variable changed_, ended_;
  std::vector<std::shared_ptr<Link>> links_;  // guarded by mutex_; shared with its communicator, and with abort()
  std::vector<InFlight> in_flight_;           // guarded by mutex_
  std::string aborted_;                       // guarded by mutex_
  bool stop_ = false;                         // guarded by mutex_
  std::thread watcher_;                       // last: it uses all of the above
};

ncclDataType_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return ncclFloat64;
    case at::kFloat:
      return ncclFloat32;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kLong:
      return ncclInt64;
    case at::kInt:
      return ncclInt32;
    case at::kByte:
      return ncclUint8;
    default:
      throw std::runtime_error(format("tensors of type {} cannot be sent.", at::toString(tensor.scalar_type())));
  }
}

// NCCL works in place where the part is this rank's own; another overlap takes a buffer between.
bool needs_buffer(const CommOperation& operation) {
  if (operation.kind == CommKind::kAllReduce || operation.kind == CommKind::kBroadcast) return false;
  const auto* in = static_cast<const char*>(operation.in.const_data_ptr());
  const auto* out = static_cast<const char*>(operation.out.const_data_ptr());
  if (in >= out + operation.out.nbytes() || out >= in + operation.in.nbytes()) return false;
  const auto rank = static_cast<size_t>(operation.rank);
  if (operation.kind == CommKind::kReduceScatter) return out != in + rank * operation.out.nbytes();
  if (operation.kind == CommKind::kAllGather) return in != out + rank * operation.in.nbytes();
  return true;
}

ncclResult_t send_parts(const at::Tensor& in, const at::Tensor& out, int size, ncclComm_t comm, cudaStream_t stream) {
  const size_t part = static_cast<size_t>(in.numel() / size), part_bytes = part * in.element_size();
  ncclResult_t result = ncclGroupStart();
  for (int r = 0; r < size && result == ncclSuccess; ++r) {
    const size_t offset = static_cast<size_t>(r) * part_bytes;
    result = ncclSend(static_cast<const char*>(in.const_data_ptr()) + offset, part, type_of(in), r, comm, stream);
    if (result == ncclSuccess)
      result = ncclRecv(static_cast<char*>(out.data_ptr()) + offset, part, type_of(out), r, comm, stream);
  }
  const ncclResult_t end = ncclGroupEnd();
  return result == ncclSuccess ? end : result;
}

ncclResult_t start_nccl(const CommOperation& operation, const at::Tensor& out, int size, const Link& link) {
  const at::Tensor& in = operation.in;
  constexpr ncclRedOp_t kOps[] = {ncclSum, ncclMax, ncclMin};
  const ncclRedOp_t op = kOps[static_cast<size_t>(operation.op)];
  const ncclDataType_t type = type_of(in);
  const auto num_in = static_cast<size_t>(in.numel()), num_out = static_cast<size_t>(out.numel());
  const void* from = in.const_data_ptr();
  void* to = out.data_ptr();
  switch (operation.kind) {
    case CommKind::kAllReduce:
      return ncclAllReduce(from, to, num_in, type, op, link.comm, link.stream);
    case CommKind::kReduceScatter:
      return ncclReduceScatter(from, to, num_out, type, op, link.comm, link.stream);
    case CommKind::kAllGather:
      return ncclAllGather(from, to, num_in, type, link.comm, link.stream);
    case CommKind::kAllToAll:
      return send_parts(in, out, size, link.comm, link.stream);
    case CommKind::kBroadcast:
      return ncclBroadcast(from, to, num_in, type, operation.root, link.comm, link.stream);
    case CommKind::kBarrier:
      break;
  }
  return ncclInvalidUsage;  // barriers are the host's
}

bool is_for_host(const CommOperation& operation) { return !operation.in.defined() || operation.in.is_cpu(); }

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<World> world, std::shared_ptr<Communicator> host, std::shared_ptr<Link> link,
                   const CommOptions& options)
      : Communicator(host->rank(), host->size(), options),
        world_(std::move(world)),
        host_(std::move(host)),
        link_(std::move(link)),
        num_uncaught_(std::uncaught_exceptions()) {}

  ~NcclCommunicator() override {
    try {
      world_->leave(link_, std::uncaught_exceptions() <= num_uncaught_);
    } catch (const std::exception& error) {
      log_error("The end of a communicator: {}", error.what());
    }
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    TEMPER_CHECK(color >= 0, "color {}", color);
    const auto deadline = Clock::now() + options().timeout;
    world_->drain(*link_);  // NCCL splits no communicator that is in use
    std::shared_ptr<Communicator> host = host_->split(color, key);
    const std::shared_ptr<Link> link = world_->add_link();
    ncclConfig_t config = non_blocking();
    // The host has put the ranks in order.
    ncclResult_t state = world_->call(
        *link_, deadline, [&] { return ncclCommSplit(link_->comm, color, host->rank(), &link->comm, &config); });
    if (state == ncclSuccess) state = world_->call(*link, deadline, [] { return ncclSuccess; });
    if (state != ncclSuccess)
      world_->fail(format("split of {} ranks, on rank {}: {}", size(), rank(), error_text(state)));
    return std::make_unique<NcclCommunicator>(world_, std::move(host), link, options());
  }

  std::unique_ptr<Communicator> split_for_host(int color, int key) override { return host_->split(color, key); }

  void abort(const std::string& why) override { world_->abort(why); }

 protected:
  void start(const std::shared_ptr<CommOperation>& operation) override {
    if (is_for_host(*operation)) return start_on(*host_, operation);
    try {
      begin_on_gpu(operation);
    } catch (const CommError& error) {
      operation->fail(error.what());
    } catch (const std::exception& error) {
      operation->fail(format("{}: {}", operation->describe(), error.what()));
    }
  }

  std::string missing_ranks(const CommOperation& operation) const override {
    return is_for_host(operation) ? host_->late_ranks(operation) : std::string();
  }

 private:
  void begin_on_gpu(const std::shared_ptr<CommOperation>& operation) {
    const at::Tensor &in = operation->in, &out = operation->out;
    TEMPER_CHECK(in.device() == out.device() && in.device().index() == world_->device,
                 "tensors on {} and {}, the communicator on GPU {}", in.device().str(), out.device().str(),
                 world_->device);
    if (in.numel() == 0) return operation->finish();
    const at::NoGradGuard no_grad;
    const c10::cuda::CUDAGuard device_guard(in.device());
    Event(c10::cuda::getCurrentCUDAStream()).hold_back(link_->stream);
    const c10::cuda::CUDAStreamGuard stream_guard(link_->stream);
    // The operation keeps the tensors to its end; after a failure the GPU may be at them for a little longer.
    for (const at::Tensor& tensor : {in, out})
      c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), link_->stream);
    const at::Tensor result = needs_buffer(*operation) ? at::empty_like(out) : out;
    const ncclResult_t state =
        world_->call(*link_, operation->deadline, [&] { return start_nccl(*operation, result, size(), *link_); });
    if (state == ncclInProgress) world_->fail(late_text(*operation));
    if (state != ncclSuccess) world_->fail(format("{}: {}", operation->describe(), error_text(state)));
    if (!result.is_same(out)) out.copy_(result);
    world_->track(operation, *link_, Event(link_->stream));
  }

  std::shared_ptr<World> world_;        // shared with what split() made
  std::shared_ptr<Communicator> host_;  // the outermost one's is shared with the world
  std::shared_ptr<Link> link_;          // shared with the world
  int num_uncaught_;                    // exceptions, when this was made
};

// Made by the first rank, told to the others by the host.
ncclUniqueId agree_on_id(Communicator& host) {
  ncclUniqueId id;
  const at::Tensor bytes = at::zeros({static_cast<int64_t>(sizeof id)}, at::kByte);
  if (host.rank() == 0) {
    if (const ncclResult_t state = ncclGetUniqueId(&id); state != ncclSuccess)
      throw CommError("NCCL's unique id: {}", error_text(state));
    std::memcpy(bytes.mutable_data_ptr(), &id, sizeof id);
  }
  host.broadcast("NCCL's unique id", bytes, 0).wait();
  std::memcpy(&id, bytes.const_data_ptr(), sizeof id);
  return id;
}

std::unique_ptr<Communicator> connect(const std::shared_ptr<Communicator>& host, const ncclUniqueId& id, int device,
                                      Clock::time_point deadline, const CommOptions& options) {
  const int rank = host->rank(), size = host->size();
  auto world = std::make_shared<World>(host, device);
  const std::shared_ptr<Link> link = world->add_link();
  ncclConfig_t config = non_blocking();
  const ncclResult_t state =
      world->call(*link, deadline, [&] { return ncclCommInitRankConfig(&link->comm, size, id, rank, &config); });
  if (state != ncclSuccess)
    world->fail(format("connecting rank {} of {} on GPU {}: {}", rank, size, device, error_text(state)));
  return std::make_unique<NcclCommunicator>(world, host, link, options);
}

// Beneath two ranks that have GPUs in common alone.
class NoHost : public Communicator {
 public:
  NoHost(int rank, int size, const CommOptions& options) : Communicator(rank, size, options) {}
  std::unique_ptr<Communicator> split(int, int) override {
    throw std::logic_error("two ranks that NCCL alone connects cannot be split");
  }
  void abort(const std::string&) override {}

 protected:
  void start(const std::shared_ptr<CommOperation>& operation) override {
    operation->fail(operation->describe() + ": these ranks have GPUs in common alone.");
  }
};

}  // namespace

bool has_nccl() { return true; }

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, int device,
                                                     const CommOptions& options) {
  const auto deadline = Clock::now() + options.timeout;
  const std::shared_ptr<Communicator> shared_host = std::move(host);
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));  // NCCL takes the current one
  const ncclUniqueId id = agree_on_id(*shared_host);
  return connect(shared_host, id, device, deadline, options);
}

std::string new_nccl_id() {
  ncclUniqueId id;
  if (const ncclResult_t state = ncclGetUniqueId(&id); state != ncclSuccess)
    throw CommError("NCCL's unique id: {}", error_text(state));
  return {reinterpret_cast<const char*>(&id), sizeof id};
}

std::unique_ptr<Communicator> make_nccl_pair(const std::string& id, int rank, int device, const CommOptions& options) {
  ncclUniqueId known;
  if (id.size() != sizeof known) throw CommError("an id of NCCL has {} bytes, not {}.", sizeof known, id.size());
  std::memcpy(&known, id.data(), sizeof known);
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  return connect(std::make_shared<NoHost>(rank, 2, options), known, device, Clock::now() + options.timeout, options);
}

int device_of_local_rank(int local_rank) {
  const int num_devices = c10::cuda::device_count();
  if (num_devices == 0)
    throw ConfigError("local rank {} needs a GPU and this machine shows none: see nvidia-smi and CUDA_VISIBLE_DEVICES.",
                      local_rank);
  const int device = local_rank % num_devices;
  if (local_rank >= num_devices)
    log_warning("local rank {} shares GPU {} with local rank {}: this machine has {} GPUs. Start as many ranks.",
                local_rank, device, device, num_devices);
  return device;
}

}  // namespace temper

#else

namespace temper {
namespace {

[[noreturn]] void refuse() { throw ConfigError("this build has no CUDA and NCCL: build with scripts/build.sh cuda."); }

}  // namespace

bool has_nccl() { return false; }
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>, int, const CommOptions&) {
  refuse();
}
std::string new_nccl_id() { refuse(); }
std::unique_ptr<Communicator> make_nccl_pair(const std::string&, int, int, const CommOptions&) { refuse(); }
int device_of_local_rank(int) { refuse(); }

}  // namespace temper

#endif
