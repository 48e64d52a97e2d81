#include "comm/weight_link.h"

#include <ATen/ATen.h>

#include "comm/nccl_communicator.h"
#include "core/error.h"

namespace temper {
namespace {

class PairLink : public WeightLink {
 public:
  PairLink(std::unique_ptr<Communicator> pair, at::Device device) : pair_(std::move(pair)), device_(device) {
    TEMPER_CHECK(pair_->size() == 2, "a link has two ends, not {}", pair_->size());
  }
  ~PairLink() override { pair_->abort("the link for weights is closed."); }

  void send(std::string_view bytes) override {
    const at::NoGradGuard no_grad;
    const at::Tensor room = make_room(bytes.size());
    room.copy_(at::from_blob(const_cast<char*>(bytes.data()), room.sizes(), at::kByte));
    pair_->broadcast("weights", room, 0).wait();
  }
  void receive(std::span<char> bytes) override {
    const at::NoGradGuard no_grad;
    const at::Tensor room = make_room(bytes.size());
    pair_->broadcast("weights", room, 0).wait();
    at::from_blob(bytes.data(), room.sizes(), at::kByte).copy_(room);
  }
  void abort(const std::string& why) override { pair_->abort(why); }

 private:
  at::Tensor make_room(size_t size_bytes) const {
    return at::empty({static_cast<int64_t>(size_bytes)}, at::TensorOptions(device_).dtype(at::kByte));
  }

  std::unique_ptr<Communicator> pair_;
  at::Device device_;
};

class NcclLinks : public WeightLinks {
 public:
  NcclLinks(int device, std::chrono::milliseconds timeout) : device_(device), options_{.timeout = timeout} {}
  std::string new_id() override { return new_nccl_id(); }
  std::unique_ptr<WeightLink> connect(const std::string& id, End end) override {
    return make_weight_link(make_nccl_pair(id, end == End::kSender ? 0 : 1, device_, options_),
                            at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device_)));
  }

 private:
  int device_;
  CommOptions options_;
};

}  // namespace

std::unique_ptr<WeightLink> make_weight_link(std::unique_ptr<Communicator> pair, at::Device device) {
  return std::make_unique<PairLink>(std::move(pair), device);
}

std::shared_ptr<WeightLinks> nccl_weight_links(int device, std::chrono::milliseconds timeout) {
  if (!has_nccl())
    throw ConfigError(
        "async.weight_transport = nccl: this build has no CUDA and NCCL. Build with scripts/build.sh cuda, or use "
        "messages.");
  return std::make_shared<NcclLinks>(device, timeout);
}

}  // namespace temper
