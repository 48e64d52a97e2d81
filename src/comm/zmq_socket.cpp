#include "comm/zmq_socket.h"

#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace temper {
namespace {

void check_zmq(bool good, const char* call) {
  if (!good) throw CommError("{} failed: {}.", call, zmq_strerror(zmq_errno()));
}

int kind_of(ZmqKind kind) {
  switch (kind) {
    case ZmqKind::kRouter:
      return ZMQ_ROUTER;
    case ZmqKind::kDealer:
      return ZMQ_DEALER;
    case ZmqKind::kPair:
      return ZMQ_PAIR;
    case ZmqKind::kReply:
      return ZMQ_REP;
  }
  return -1;
}

zmq_msg_t* message_of(void* storage) { return static_cast<zmq_msg_t*>(storage); }

ZmqSend sent_or_why_not(int result) {
  if (result >= 0) return ZmqSend::kSent;
  if (zmq_errno() == EAGAIN) return ZmqSend::kFull;
  if (zmq_errno() == EHOSTUNREACH) return ZmqSend::kUnreachable;
  throw CommError("zmq_send failed: {}.", zmq_strerror(zmq_errno()));
}

}  // namespace

ZmqContext::ZmqContext(int io_threads, int max_sockets) : handle_(zmq_ctx_new()) {
  check_zmq(handle_ != nullptr, "zmq_ctx_new");
  check_zmq(zmq_ctx_set(handle_, ZMQ_IO_THREADS, io_threads) == 0, "zmq_ctx_set");
  check_zmq(zmq_ctx_set(handle_, ZMQ_MAX_SOCKETS, max_sockets) == 0, "zmq_ctx_set");
}

ZmqContext::~ZmqContext() {
  while (zmq_ctx_term(handle_) != 0 && zmq_errno() == EINTR) {
  }
}

ZmqMessage::ZmqMessage() {
  static_assert(sizeof(zmq_msg_t) == sizeof storage_ && alignof(zmq_msg_t) <= alignof(void*));
  zmq_msg_init(message_of(storage_.data()));
}

ZmqMessage::ZmqMessage(size_t size_bytes) {
  if (zmq_msg_init_size(message_of(storage_.data()), size_bytes) != 0)
    throw CommError("no memory for a message of {} bytes.", size_bytes);
}

ZmqMessage::~ZmqMessage() { zmq_msg_close(message_of(storage_.data())); }

ZmqMessage::ZmqMessage(ZmqMessage&& other) noexcept : ZmqMessage() { *this = std::move(other); }

ZmqMessage& ZmqMessage::operator=(ZmqMessage&& other) noexcept {
  if (this != &other) zmq_msg_move(message_of(storage_.data()), message_of(other.storage_.data()));
  return *this;
}

char* ZmqMessage::data() { return static_cast<char*>(zmq_msg_data(message_of(storage_.data()))); }

std::string_view ZmqMessage::bytes() const {
  zmq_msg_t* message = message_of(storage_.data());
  return {static_cast<const char*>(zmq_msg_data(message)), zmq_msg_size(message)};
}

bool ZmqMessage::has_more() const { return zmq_msg_more(message_of(storage_.data())) != 0; }

std::string ZmqMessage::property(const char* name) const {
  const char* text = zmq_msg_gets(message_of(storage_.data()), name);
  return text == nullptr ? "" : text;
}

ZmqSocket::ZmqSocket(const ZmqContext& context, ZmqKind kind) : handle_(zmq_socket(context.handle(), kind_of(kind))) {
  check_zmq(handle_ != nullptr, "zmq_socket");
}

ZmqSocket::~ZmqSocket() { zmq_close(handle_); }

void ZmqSocket::set(int option, int value) {
  check_zmq(zmq_setsockopt(handle_, option, &value, sizeof value) == 0, "zmq_setsockopt");
}

void ZmqSocket::set(int option, int64_t value) {
  check_zmq(zmq_setsockopt(handle_, option, &value, sizeof value) == 0, "zmq_setsockopt");
}

void ZmqSocket::set(int option, const std::string& value) {
  check_zmq(zmq_setsockopt(handle_, option, value.data(), value.size()) == 0, "zmq_setsockopt");
}

void ZmqSocket::bind(const std::string& address) {
  if (zmq_bind(handle_, address.c_str()) != 0)
    throw CommError("{}: cannot be listened on ({}). Give an address of this machine and a free port, or port *.",
                    address, zmq_strerror(zmq_errno()));
}

void ZmqSocket::connect(const std::string& address) {
  if (zmq_connect(handle_, address.c_str()) != 0)
    throw CommError("{}: is no address to connect to ({}). Write it as tcp://HOST:PORT.", address,
                    zmq_strerror(zmq_errno()));
}

std::string ZmqSocket::last_address() const {
  std::array<char, 256> text{};
  size_t size = text.size();
  check_zmq(zmq_getsockopt(handle_, ZMQ_LAST_ENDPOINT, text.data(), &size) == 0, "zmq_getsockopt");
  return text.data();
}

int ZmqSocket::file() const {
  int file = -1;
  size_t size = sizeof file;
  check_zmq(zmq_getsockopt(handle_, ZMQ_FD, &file, &size) == 0, "zmq_getsockopt");
  return file;
}

void ZmqSocket::monitor(const std::string& address) {
  check_zmq(zmq_socket_monitor(handle_, address.empty() ? nullptr : address.c_str(), ZMQ_EVENT_ALL) == 0,
            "zmq_socket_monitor");
}

ZmqSend ZmqSocket::send(std::string_view bytes, bool more) {
  return sent_or_why_not(zmq_send(handle_, bytes.data(), bytes.size(), ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)));
}

ZmqSend ZmqSocket::send(ZmqMessage& message, bool more) {
  return sent_or_why_not(zmq_msg_send(message_of(message.handle()), handle_, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)));
}

bool ZmqSocket::receive(ZmqMessage& message) {
  if (zmq_msg_recv(message_of(message.handle()), handle_, ZMQ_DONTWAIT) >= 0) return true;
  if (zmq_errno() == EAGAIN || zmq_errno() == EINTR) return false;
  throw CommError("zmq_msg_recv failed: {}.", zmq_strerror(zmq_errno()));
}

void ZmqSocket::skip_rest(ZmqMessage& message) {
  while (message.has_more() && receive(message)) {
  }
}

void wait_readable(std::initializer_list<const ZmqSocket*> sockets, std::initializer_list<int> files,
                   std::chrono::steady_clock::time_point deadline) {
  std::array<zmq_pollitem_t, 4> items{};
  size_t count = 0;
  for (const ZmqSocket* socket : sockets) items.at(count++) = {socket->handle(), 0, ZMQ_POLLIN, 0};
  for (const int file : files) items.at(count++) = {nullptr, file, ZMQ_POLLIN, 0};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  // A deadline far away is looked at again by the caller.
  const auto wait_ms = std::clamp<int64_t>(left.count(), 0, 60'000);
  check_zmq(zmq_poll(items.data(), static_cast<int>(count), static_cast<long>(wait_ms)) >= 0 || zmq_errno() == EINTR,
            "zmq_poll");
}

WakeUp::WakeUp() : file_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (file_ < 0) throw IoError("no eventfd can be made ({}). Raise the limit of open files.", std::strerror(errno));
}

WakeUp::~WakeUp() { ::close(file_); }

void WakeUp::raise() {
  raised_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(file_, &one, sizeof one);  // full: it is raised already
}

bool WakeUp::take() {
  if (!raised_.exchange(false)) return false;
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t cleared = ::read(file_, &count, sizeof count);
  return true;
}

// The flag may have been taken between its raise() and the file's becoming readable: then the file says it once more.
void WakeUp::look() {
  uint64_t count = 0;
  if (::read(file_, &count, sizeof count) == static_cast<ssize_t>(sizeof count)) raised_ = true;
}

// https://libzmq.readthedocs.io/en/latest/zmq_socket_monitor.html: event (16 bits), value (32 bits); then the address.
bool receive_event(ZmqSocket& monitor, ZmqEvent& event) {
  ZmqMessage message;
  if (!monitor.receive(message)) return false;
  const std::string_view bytes = message.bytes();
  if (bytes.size() >= 6) {
    uint16_t number = 0;
    uint32_t value = 0;
    std::memcpy(&number, bytes.data(), sizeof number);
    std::memcpy(&value, bytes.data() + 2, sizeof value);
    event = {number, static_cast<int>(value)};
  }
  while (message.has_more() && monitor.receive(message)) {
  }
  return true;
}

}  // namespace temper
