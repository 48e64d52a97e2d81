// A second way for the bytes of weights from one trainer rank to one reader, beside the wire of messages
// (comm/weight_server.h): NCCL between the GPUs of the two. What is to be sent is agreed on by messages, and checked
// with the same checksums when it has come; a link that fails costs time alone, the bytes then come as messages.
#pragma once
#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/communicator.h"

namespace temper {

// One end of a connected link. One thread sends or receives; abort() alone may come from any.
class WeightLink {
 public:
  virtual ~WeightLink() = default;
  // Each send() is for one receive() of as many bytes. CommError where the other end does not come in time, is gone, or
  // after abort().
  virtual void send(std::string_view bytes) = 0;
  virtual void receive(std::span<char> bytes) = 0;
  virtual void abort(const std::string& why) = 0;
};

// How a process comes to links. Any thread.
class WeightLinks {
 public:
  enum class End { kSender, kReader };

  virtual ~WeightLinks() = default;
  // The reader makes one up, of at most 256 bytes; both ends connect by it, once. CommError where there can be no
  // links.
  virtual std::string new_id() = 0;
  // Blocks until the other end connects too. CommError where it does not in time.
  virtual std::unique_ptr<WeightLink> connect(const std::string& id, End end) = 0;
};

// Over two ranks, the sender first: bytes travel by broadcast through memory of `device`, which has room for those of
// one call. Aborts the communicator at its end.
std::unique_ptr<WeightLink> make_weight_link(std::unique_ptr<Communicator> pair, at::Device device);

// Between GPUs; this process' is number `device`. timeout: of connecting, and of each piece. ConfigError in a build
// without NCCL.
std::shared_ptr<WeightLinks> nccl_weight_links(int device, std::chrono::milliseconds timeout);

}  // namespace temper
