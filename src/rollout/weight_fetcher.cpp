#include "rollout/weight_fetcher.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/channel.h"
#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

constexpr const char* kSharedMemory = "/dev/shm";
constexpr auto kFetchTimeout = std::chrono::seconds(60);  // of one try; the worker backs off and tries again

at::ScalarType scalar_type(WeightDtype dtype, const std::string& name) {
  switch (dtype) {
    case WeightDtype::kF32:
      return at::kFloat;
    case WeightDtype::kBf16:
      return at::kBFloat16;
    case WeightDtype::kF16:
      return at::kHalf;
    case WeightDtype::kInt8:
      break;
  }
  throw FormatError("the trainer sends {} as {}, no type of a master. Run trainer and workers from one build.", name,
                    weight_dtype_name(dtype));
}

}  // namespace

WeightFetcher::WeightFetcher(const ModelConfig& model, std::optional<ClientKeys> keys, std::string run_id,
                             std::shared_ptr<WeightLinks> links, std::function<void()> wake)
    : layout_(parameter_layout(model)),
      keys_(std::move(keys)),
      run_id_(std::move(run_id)),
      links_(std::move(links)),
      wake_(std::move(wake)),
      thread_([this] { work(); }) {}

WeightFetcher::~WeightFetcher() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    if (client_) client_->stop();
  }
  changed_.notify_all();
  thread_.join();
}

void WeightFetcher::fetch(std::vector<std::string> endpoints, int64_t epoch, PolicyVersion at_least) {
  const std::lock_guard lock(mutex_);
  job_ = Job{std::move(endpoints), epoch, at_least};
  result_.reset();
  if (busy_ && client_) client_->stop();
  changed_.notify_all();
}

std::optional<WeightFetcher::Fetched> WeightFetcher::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(result_, std::nullopt);
}

// produces: masters; consumes: versions of the trainer's ranks; waits for: fetch(), then the ranks;
// is unblocked by: fetch() and the destructor, which stop the client.
void WeightFetcher::work() {
  std::unique_lock lock(mutex_);
  bool stopped = false;  // the client is of no use any more
  while (true) {
    changed_.wait(lock, [this] { return closed_ || job_; });
    if (closed_) return;
    const Job job = *std::exchange(job_, std::nullopt);
    busy_ = true;
    if (!client_ || stopped || client_->endpoints() != job.endpoints) {
      client_.reset();
      stopped = false;
      WeightClientOptions options;
      options.allow_plain_text = !keys_;
      options.links = links_;
      // On one machine a difference takes longer to compress than the whole to cipher (docs/performance.md).
      options.deltas = !std::all_of(job.endpoints.begin(), job.endpoints.end(), is_loopback);
      if (!run_id_.empty() && file_exists(kSharedMemory)) {
        options.host_dir = kSharedMemory;
        options.run_id = run_id_;
      }
      try {
        client_ = std::make_unique<WeightClient>(job.endpoints, keys_, options);
      } catch (const Error& error) {
        busy_ = false;
        result_ = Fetched{job.epoch, -1, {}, error.what()};
        wake_();
        continue;
      }
    }
    lock.unlock();
    Fetched fetched = run(job);
    lock.lock();
    busy_ = false;
    stopped = job_.has_value();
    if (job_ || closed_) continue;  // nobody waits for this one any more
    result_ = std::move(fetched);
    wake_();
  }
}

WeightFetcher::Fetched WeightFetcher::run(const Job& job) {
  try {
    const FetchedWeights& weights =
        client_->fetch(job.epoch, job.at_least, std::chrono::steady_clock::now() + kFetchTimeout);
    return {weights.epoch, weights.version, to_masters(weights), ""};
  } catch (const Error& error) {
    return {job.epoch, -1, {}, error.what()};
  }
}

FlatParameters WeightFetcher::to_masters(const FetchedWeights& weights) const {
  const at::NoGradGuard no_grad;
  FlatParameters masters(layout_);
  for (const ParameterSpec& spec : layout_) {
    const auto found = weights.tensors.find(spec.name);
    if (found == weights.tensors.end())
      throw FormatError("version {} of the weights lacks {}. Start worker and trainer with one model.", weights.version,
                        spec.name);
    const FetchedTensor& tensor = found->second;
    if (tensor.shape != spec.shape)
      throw FormatError("version {} of the weights has {} of another shape. Start worker and trainer with one model.",
                        weights.version, spec.name);
    masters[spec.name].copy_(at::from_blob(const_cast<char*>(tensor.bytes.data()), tensor.shape,
                                           at::TensorOptions().dtype(scalar_type(tensor.dtype, spec.name))));
  }
  return masters;
}

}  // namespace temper
