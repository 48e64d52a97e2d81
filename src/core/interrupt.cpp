#include "core/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace temper {
namespace {

std::atomic<int> requests{0};

void on_signal(int signal) {
  const int earlier = requests.fetch_add(1);
  if (signal == SIGINT && earlier > 0) ::_exit(128 + SIGINT);
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

bool stop_requested() { return requests.load() > 0; }

}  // namespace temper
