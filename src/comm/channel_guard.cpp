#include "comm/channel_guard.h"

#include <zmq.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/log.h"

namespace temper {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr const char *kQuestions = "inproc://zeromq.zap.01", *kEvents = "inproc://temper.events";
constexpr size_t kRawKeyBytes = 32;

}  // namespace

ChannelGuard::ChannelGuard(const ZmqContext& context, ZmqSocket& router, const std::vector<std::string>& allowed)
    : router_(router),
      questions_(context, ZmqKind::kReply),
      events_(context, ZmqKind::kPair),
      allowed_(allowed.begin(), allowed.end()) {
  questions_.set(ZMQ_LINGER, 0);
  questions_.bind(kQuestions);
  router.monitor(kEvents);
  // ZeroMQ's I/O thread waits where the events' queue is full; this one has no end, and its reader does nothing else.
  events_.set(ZMQ_RCVHWM, 0);
  events_.set(ZMQ_LINGER, 0);
  events_.connect(kEvents);
  thread_ = std::thread([this] { run(); });
}

ChannelGuard::~ChannelGuard() {
  router_.monitor("");
  stop_.raise();
  thread_.join();
}

void ChannelGuard::allow(const std::string& public_key) {
  const std::lock_guard lock(mutex_);
  allowed_.insert(public_key);
}

std::vector<int> ChannelGuard::take_disconnected() {
  if (!disconnected_.take()) return {};
  const std::lock_guard lock(mutex_);
  return std::exchange(disconnected_files_, {});
}

// produces: answers, counts, files of ended connections; consumes: questions, events; waits for: both; is unblocked by:
// the destructor.
void ChannelGuard::run() {
  while (!stop_.take()) {
    auto deadline = Clock::now() + 60s;
    if (!tell_again_.empty()) deadline = std::min(deadline, tell_again_.begin()->first);
    wait_readable({&questions_, &events_}, {stop_.file()}, deadline);
    stop_.look();
    answer();
    see_event();
    while (!tell_again_.empty() && tell_again_.begin()->first <= Clock::now()) {
      tell_disconnected(tell_again_.begin()->second);
      tell_again_.erase(tell_again_.begin());
    }
  }
}

void ChannelGuard::tell_disconnected(int file) {
  const std::lock_guard lock(mutex_);
  disconnected_files_.push_back(file);
  disconnected_.raise();
}

// A question: version, request id, domain, address, identity, mechanism, key (32 bytes). The answer: version, request
// id, status code and text, user id (a property of each message then), metadata.
void ChannelGuard::answer() {
  std::array<ZmqMessage, 7> parts;
  size_t count = 0;
  for (bool more = true; more; ++count) {
    ZmqMessage part;
    if (!questions_.receive(part)) return;
    more = part.has_more();
    if (count < parts.size()) parts[count] = std::move(part);
  }
  std::string user_id;
  if (count == parts.size() && parts[5].bytes() == "CURVE" && parts[6].bytes().size() == kRawKeyBytes) {
    std::array<char, 41> key{};
    zmq_z85_encode(key.data(), reinterpret_cast<const uint8_t*>(parts[6].data()), kRawKeyBytes);
    const std::lock_guard lock(mutex_);
    if (allowed_.contains(key.data())) user_id = key.data();
  }
  const bool good = !user_id.empty();
  if (!good && ++keys_refused_ == 1)
    log_warning("a client at {} was refused: its key is not on the list of allowed workers (further ones are counted)",
                count > 3 ? parts[3].bytes() : "an unknown address");
  questions_.send("1.0", true);
  questions_.send(count > 1 ? parts[1].bytes() : "", true);
  questions_.send(good ? "200" : "400", true);
  questions_.send(good ? "OK" : "key not on the list", true);
  questions_.send(user_id, true);
  questions_.send("", false);
}

void ChannelGuard::see_event() {
  ZmqEvent event;
  if (!receive_event(events_, event)) return;
  switch (event.event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
      ++connections_;
      return;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
      ++handshakes_failed_;
      return;
    case ZMQ_EVENT_DISCONNECTED:
      tell_disconnected(event.value);
      for (const auto delay : {20ms, 200ms, 2000ms}) tell_again_.emplace(Clock::now() + delay, event.value);
      return;
    default:
      return;
  }
}

}  // namespace temper
