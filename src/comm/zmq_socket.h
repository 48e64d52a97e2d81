// ZeroMQ's C library, wrapped once: a context, a message and a socket that close themselves and throw CommError. For
// channel_*.cpp. A socket belongs to one thread; nothing here blocks but wait_readable().
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace temper {

enum class ZmqKind { kRouter, kDealer, kPair, kReply };
enum class ZmqSend { kSent, kFull, kUnreachable };

class ZmqContext {
 public:
  explicit ZmqContext(int io_threads, int max_sockets = 1023);
  ~ZmqContext();  // after its sockets
  ZmqContext(const ZmqContext&) = delete;
  ZmqContext& operator=(const ZmqContext&) = delete;
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

class ZmqMessage {
 public:
  ZmqMessage();
  explicit ZmqMessage(size_t size_bytes);
  ~ZmqMessage();
  ZmqMessage(ZmqMessage&& other) noexcept;
  ZmqMessage& operator=(ZmqMessage&& other) noexcept;
  char* data();
  std::string_view bytes() const;
  bool has_more() const;                         // further parts of the same message follow
  std::string property(const char* name) const;  // of the connection it came on; empty where it has none
  void* handle() { return storage_.data(); }

 private:
  alignas(void*) mutable std::array<std::byte, 64> storage_;  // zmq_msg_t
};

class ZmqSocket {
 public:
  ZmqSocket(const ZmqContext& context, ZmqKind kind);
  ~ZmqSocket();
  ZmqSocket(const ZmqSocket&) = delete;
  ZmqSocket& operator=(const ZmqSocket&) = delete;

  void set(int option, int value);
  void set(int option, int64_t value);
  void set(int option, const std::string& value);
  void bind(const std::string& address);  // CommError names the address and the reason
  void connect(const std::string& address);
  std::string last_address() const;
  int file() const;  // readable when something may have happened: look with receive() until it has nothing
  void monitor(const std::string& address);  // its events go to a pair socket that connects there; "": no longer

  ZmqSend send(std::string_view bytes, bool more);
  ZmqSend send(ZmqMessage& message, bool more);  // moves it out where it is sent
  bool receive(ZmqMessage& message);             // false: nothing is there
  void skip_rest(ZmqMessage& message);           // its further parts
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

// Until one of the sockets or files can be read or the time has come. A signal ends it early too.
void wait_readable(std::initializer_list<const ZmqSocket*> sockets, std::initializer_list<int> files,
                   std::chrono::steady_clock::time_point deadline);

// A flag that one thread raises and another sleeps on, as a file for wait_readable (eventfd).
class WakeUp {
 public:
  WakeUp();
  ~WakeUp();
  WakeUp(const WakeUp&) = delete;
  WakeUp& operator=(const WakeUp&) = delete;
  void raise();  // any thread
  bool take();   // true where it was raised since the last take()
  void look();   // after a wait for its file, before take(), which costs nothing where the flag is not raised
  int file() const { return file_; }

 private:
  std::atomic<bool> raised_ = false;
  int file_;
};

// One event of a monitored socket; value: its file descriptor or an error, by event.
struct ZmqEvent {
  int event = 0;
  int value = 0;
};
bool receive_event(ZmqSocket& monitor, ZmqEvent& event);  // false: none is there

}  // namespace temper
