#include "comm/mpi_communicator.h"

#include <ATen/ATen.h>
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <cstdlib>
#include <deque>
#include <functional>
#include <future>
#include <optional>
#include <thread>

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return {text, static_cast<size_t>(length)};
}

void check_mpi(int code, const std::string& what) {
  if (code != MPI_SUCCESS) throw CommError("{}: MPI says: {}", what, error_text(code));
}

// bf16 numbers, which MPI does not know, reduced in f32.
template <class Reduce>
void reduce_bf16(void* source, void* target, const int* count, const Reduce& reduce) {
  const auto* from = static_cast<const c10::BFloat16*>(source);
  auto* to = static_cast<c10::BFloat16*>(target);
  for (int i = 0; i < *count; ++i) to[i] = reduce(static_cast<float>(to[i]), static_cast<float>(from[i]));
}
void add_bf16(void* in, void* out, int* count, MPI_Datatype*) {
  reduce_bf16(in, out, count, [](float a, float b) { return a + b; });
}
void max_bf16(void* in, void* out, int* count, MPI_Datatype*) {
  reduce_bf16(in, out, count, [](float a, float b) { return std::max(a, b); });
}
void min_bf16(void* in, void* out, int* count, MPI_Datatype*) {
  reduce_bf16(in, out, count, [](float a, float b) { return std::min(a, b); });
}

// MPI's names for what an operation says. Made and used by the MPI thread.
class MpiTypes {
 public:
  MpiTypes() {
    check_mpi(MPI_Type_contiguous(2, MPI_BYTE, &bf16_), "a type for bf16");
    check_mpi(MPI_Type_commit(&bf16_), "a type for bf16");
    MPI_User_function* const functions[] = {add_bf16, max_bf16, min_bf16};
    for (size_t i = 0; i < 3; ++i) check_mpi(MPI_Op_create(functions[i], /*commute=*/1, &bf16_ops_[i]), "bf16 sums");
  }
  MPI_Datatype type(const at::Tensor& tensor) const {
    switch (tensor.scalar_type()) {
      case at::kDouble:
        return MPI_DOUBLE;
      case at::kFloat:
        return MPI_FLOAT;
      case at::kBFloat16:
        return bf16_;
      case at::kLong:
        return MPI_INT64_T;
      case at::kInt:
        return MPI_INT32_T;
      case at::kByte:
        return MPI_UINT8_T;
      default:
        throw CommError("tensors of type {} cannot be sent.", at::toString(tensor.scalar_type()));
    }
  }
  MPI_Op op(const CommOperation& operation) const {
    const auto index = static_cast<size_t>(operation.op);
    const MPI_Op plain[] = {MPI_SUM, MPI_MAX, MPI_MIN};
    return operation.in.scalar_type() == at::kBFloat16 ? bf16_ops_[index] : plain[index];
  }

 private:
  MPI_Datatype bf16_ = MPI_DATATYPE_NULL;
  MPI_Op bf16_ops_[3] = {};
};

int count_of(const at::Tensor& tensor) {
  if (tensor.numel() > INT32_MAX)
    throw CommError("{} elements in one operation; MPI counts to {}.", tensor.numel(), INT32_MAX);
  return static_cast<int>(tensor.numel());
}

bool overlaps(const at::Tensor& a, const at::Tensor& b) {
  const auto* a_begin = static_cast<const char*>(a.const_data_ptr());
  const auto* b_begin = static_cast<const char*>(b.const_data_ptr());
  return a_begin < b_begin + b.nbytes() && b_begin < a_begin + a.nbytes();
}

struct Active {
  MPI_Request request = MPI_REQUEST_NULL;
  std::shared_ptr<CommOperation> operation;
  at::Tensor result;  // to be copied to operation->out at the end; undefined: it is there
};

}  // namespace

struct MpiWorld::State {
  explicit State(const CommOptions& comm_options) : options(comm_options), thread([this] { work(); }) {
    const std::string failure = started.get_future().get();
    if (failure.empty()) return;
    thread.join();
    throw CommError("{}", failure);
  }

  // Runs in the MPI thread, after what was posted before.
  void post(std::function<void()> task) {
    const std::lock_guard lock(mutex);
    tasks.push_back(std::move(task));
    changed.notify_all();
  }

  // As post, and waits; passes on what the task throws.
  template <class Task>
  auto run(Task task) {
    auto promise = std::make_shared<std::promise<decltype(task())>>();
    auto future = promise->get_future();
    post([promise, task] {
      try {
        promise->set_value(task());
      } catch (...) {
        promise->set_exception(std::current_exception());
      }
    });
    return future.get();
  }

  void begin(MPI_Comm comm, int size, const std::shared_ptr<CommOperation>& operation) {
    try {
      if (!aborted.empty()) throw CommError("{}", aborted);
      active.push_back(start(comm, size, operation));
    } catch (const std::exception& error) {
      operation->fail(format("{}: {}", operation->describe(), error.what()));
    }
  }

  Active start(MPI_Comm comm, int size, const std::shared_ptr<CommOperation>& operation) const {
    const at::Tensor &in = operation->in, &out = operation->out;
    Active begun{.operation = operation};
    MPI_Request* request = &begun.request;
    int code = MPI_SUCCESS;
    switch (operation->kind) {
      case CommKind::kAllReduce:
        code = MPI_Iallreduce(MPI_IN_PLACE, out.data_ptr(), count_of(out), types->type(out), types->op(*operation),
                              comm, request);
        break;
      case CommKind::kReduceScatter:
        begun.result = overlaps(in, out) ? at::empty_like(out) : out;
        code = MPI_Ireduce_scatter_block(in.data_ptr(), begun.result.data_ptr(), count_of(out), types->type(out),
                                         types->op(*operation), comm, request);
        break;
      case CommKind::kAllGather:
        code = MPI_Iallgather(overlaps(in, out) ? MPI_IN_PLACE : in.data_ptr(), count_of(in), types->type(in),
                              out.data_ptr(), count_of(in), types->type(in), comm, request);
        break;
      case CommKind::kAllToAll: {
        begun.result = overlaps(in, out) ? at::empty_like(out) : out;
        const int part = count_of(in) / size;
        code = MPI_Ialltoall(in.data_ptr(), part, types->type(in), begun.result.data_ptr(), part, types->type(in), comm,
                             request);
        break;
      }
      case CommKind::kBroadcast:
        code = MPI_Ibcast(in.data_ptr(), count_of(in), types->type(in), operation->root, comm, request);
        break;
      case CommKind::kBarrier:
        code = MPI_Ibarrier(comm, request);
        break;
    }
    check_mpi(code, "start");
    return begun;
  }

  // True: something ended.
  bool progress() {
    bool ended = false;
    for (size_t i = 0; i < active.size();) {
      int flag = 0;
      const int code = MPI_Test(&active[i].request, &flag, MPI_STATUS_IGNORE);
      if (code == MPI_SUCCESS && flag == 0) {
        ++i;
        continue;
      }
      const Active done = std::move(active[i]);
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(i));
      ended = true;
      if (code != MPI_SUCCESS) {
        done.operation->fail(format("{}: MPI says: {}", done.operation->describe(), error_text(code)));
        continue;
      }
      if (done.result.defined() && !done.result.is_same(done.operation->out)) done.operation->out.copy_(done.result);
      done.operation->finish();
    }
    return ended;
  }

  std::string start_mpi() {
    int provided = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) return "MPI does not start.";
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm node;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node) != MPI_SUCCESS)
      return "MPI does not say which ranks share a machine.";
    MPI_Comm_rank(node, &local_rank);
    types.emplace();
    return {};
  }

  // produces: finished operations; consumes: posted tasks, and requests under way; waits for: either;
  // is unblocked by: post(), or, while requests are under way, by the clock.
  void work() {
    at::set_num_threads(1);
    try {
      const std::string failure = start_mpi();
      started.set_value(failure);
      if (!failure.empty()) return;
    } catch (const std::exception& error) {
      return started.set_value(error.what());
    }
    std::chrono::microseconds pause{0};
    for (;;) {
      std::deque<std::function<void()>> now;
      {
        std::unique_lock lock(mutex);
        const auto something = [this] { return stop || !tasks.empty(); };
        if (active.empty())
          changed.wait(lock, something);
        else
          changed.wait_for(lock, pause, something);
        if (stop && tasks.empty()) break;
        now.swap(tasks);
      }
      for (const auto& task : now) task();
      // The cores are for the computation: a transfer that takes long is asked about less often.
      if (progress() || !now.empty())
        pause = std::chrono::microseconds(0);
      else
        pause = std::min(pause + std::chrono::microseconds(5), std::chrono::microseconds(200));
    }
    if (must_abort)
      MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::kComm));
    else
      MPI_Finalize();
  }

  void abort(const std::string& why) {
    run([this, why] {
      if (aborted.empty()) aborted = why;
      for (const Active& each : active) each.operation->fail(aborted);
      return 0;
    });
  }

  void end(bool unwinding) {
    {
      const std::lock_guard lock(mutex);
      must_abort = unwinding || !aborted.empty() || !active.empty();
      stop = true;
      changed.notify_all();
    }
    thread.join();
  }

  const CommOptions options;
  int rank = 0, size = 1, local_rank = 0;  // written before `started`
  std::optional<MpiTypes> types;           // of the MPI thread, as the next two
  std::vector<Active> active;
  std::string aborted;
  std::promise<std::string> started;  // empty text: MPI runs
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;  // guarded by mutex
  bool stop = false, must_abort = false;    // guarded by mutex
  std::thread thread;                       // last: it uses all of the above
};

namespace {

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiWorld::State> state, MPI_Comm comm, int rank, int size)
      : Communicator(rank, size, state->options), state_(std::move(state)), comm_(comm) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    struct Part {
      MPI_Comm comm;
      int rank, size;
    };
    const Part part = state_->run([comm = comm_, color, key] {
      Part made{MPI_COMM_NULL, 0, 1};
      check_mpi(MPI_Comm_split(comm, color, key, &made.comm), "split");
      MPI_Comm_set_errhandler(made.comm, MPI_ERRORS_RETURN);
      MPI_Comm_rank(made.comm, &made.rank);
      MPI_Comm_size(made.comm, &made.size);
      return made;
    });
    return std::make_unique<MpiCommunicator>(state_, part.comm, part.rank, part.size);
  }

  void abort(const std::string& why) override { state_->abort(why); }

 protected:
  void start(const std::shared_ptr<CommOperation>& operation) override {
    state_->post(
        [state = state_.get(), comm = comm_, size = size(), operation] { state->begin(comm, size, operation); });
  }

 private:
  std::shared_ptr<MpiWorld::State> state_;
  MPI_Comm comm_;  // freed with MPI_Finalize
};

}  // namespace

bool is_launched_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

MpiWorld::MpiWorld(const CommOptions& options)
    : state_(std::make_shared<State>(options)), num_uncaught_(std::uncaught_exceptions()) {}

MpiWorld::~MpiWorld() { state_->end(std::uncaught_exceptions() > num_uncaught_); }

std::unique_ptr<Communicator> MpiWorld::communicator() {
  return std::make_unique<MpiCommunicator>(state_, MPI_COMM_WORLD, state_->rank, state_->size);
}

void MpiWorld::abort(int exit_code) {
  state_->run([exit_code] { return MPI_Abort(MPI_COMM_WORLD, exit_code); });
  std::_Exit(exit_code);
}

int MpiWorld::rank() const { return state_->rank; }
int MpiWorld::local_rank() const { return state_->local_rank; }

}  // namespace temper
