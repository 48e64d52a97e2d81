// Messages for one peer in their order, several of them to a frame: a frame costs both sides more than its bytes do.
#pragma once
#include <deque>
#include <string>
#include <utility>

#include "comm/channel.h"

namespace temper {

class FrameQueue {
 public:
  void add(std::string message) {
    if (!frames_.empty() && frames_.back().size() + message.size() <= kFrameBytes)
      frames_.back() += message;
    else
      frames_.push_back(std::move(message));
  }
  // send(frame) gives a SendResult; stops at the first that is not kSent, which stays, and returns it.
  template <class Send>
  SendResult send_all(const Send& send) {
    SendResult sent = SendResult::kSent;
    while (!frames_.empty() && sent == SendResult::kSent) {
      sent = send(frames_.front());
      if (sent == SendResult::kSent) frames_.pop_front();
    }
    return sent;
  }
  void clear() { frames_.clear(); }

 private:
  static constexpr size_t kFrameBytes = 64 << 10;  // a longer message has one of its own
  std::deque<std::string> frames_;
};

}  // namespace temper
