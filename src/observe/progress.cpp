#include "observe/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

// The hooks of core/log.h carry no context, hence this one pointer.
std::atomic<Progress*> active{nullptr};

constexpr double kRedrawSeconds = 0.1;
constexpr int kBarColumns = 24;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int terminal_width(FILE* out) {
  winsize size{};
  if (::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string number(const char* pattern, double value) {
  char digits[64];
  std::snprintf(digits, sizeof digits, pattern, value);
  return digits;
}

// Eighths of a column, so that a long stage moves visibly.
std::string bar(double share) {
  static const char* const kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * kBarColumns * 8));
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  text += kEighths[eighths % 8];
  for (int i = (eighths + 7) / 8; i < kBarColumns; ++i) text += "░";
  return text;
}

// Cuts after `columns` characters, never inside one (UTF-8 continuation bytes begin with 10).
std::string cut(const std::string& text, int columns) {
  int seen = 0;
  for (size_t i = 0; i < text.size(); ++i)
    if ((text[i] & 0xc0) != 0x80 && seen++ == columns) return text.substr(0, i);
  return text;
}

}  // namespace

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto total = static_cast<long long>(std::llround(seconds));
  char digits[32];
  if (total >= 3600)
    std::snprintf(digits, sizeof digits, "%lld:%02lld:%02lld", total / 3600, total / 60 % 60, total % 60);
  else
    std::snprintf(digits, sizeof digits, "%lld:%02lld", total / 60, total % 60);
  return digits;
}

Progress::Progress(ProgressOptions options)
    : options_(std::move(options)),
      terminal_(options_.terminal < 0 ? ::isatty(::fileno(options_.out)) == 1 : options_.terminal == 1) {
  if (!options_.seconds) options_.seconds = steady_seconds;
  if (!terminal_) return;
  Progress* none = nullptr;
  TEMPER_CHECK(active.compare_exchange_strong(none, this), "two progress bars at a time");
  set_log_hooks(&before_log_line, &after_log_line);
}

Progress::~Progress() {
  if (!terminal_) return;
  set_log_hooks(nullptr, nullptr);
  active = nullptr;
  std::lock_guard lock(mutex_);
  erase();
}

void Progress::before_log_line() {
  Progress* bar = active;
  bar->mutex_.lock();
  bar->erase();
}

void Progress::after_log_line() {
  Progress* bar = active;
  bar->draw();
  bar->mutex_.unlock();
}

void Progress::begin_stage(const std::string& stage, int64_t total_steps, int64_t first_step) {
  std::lock_guard lock(mutex_);
  stage_ = stage;
  total_steps_ = total_steps;
  first_step_ = step_ = first_step;
  begun_s_ = steps_begun_s_ = options_.seconds();
  shown_ = last_shown_ = false;
  latest_ = {};
  if (terminal_) draw();
}

void Progress::update(const MetricRecord& record) {
  std::string line;
  {
    std::lock_guard lock(mutex_);
    step_ = record.step;
    for (const auto& [name, value] : record.values) latest_.set(name, value);
    const double now = options_.seconds();
    if (step_ <= first_step_) steps_begun_s_ = now;
    const bool last = step_ >= total_steps_;
    if (shown_ && !last && now - shown_s_ < (terminal_ ? kRedrawSeconds : options_.interval_s)) return;
    shown_ = true;
    last_shown_ = last;
    shown_s_ = now;
    if (terminal_)
      draw();
    else
      line = text(false);
  }
  if (!line.empty()) log_info("{}", line);
}

void Progress::end_stage() {
  std::string line;
  {
    std::lock_guard lock(mutex_);
    if (stage_.empty()) return;
    if (terminal_ || !last_shown_) line = text(false);
    erase();
    stage_.clear();
  }
  if (!line.empty()) log_info("{}", line);
}

std::string Progress::text(bool with_bar) const {
  std::string line = stage_ + " ";
  const double share = total_steps_ > 0 ? static_cast<double>(step_) / static_cast<double>(total_steps_) : 0;
  if (with_bar) line += bar(share) + " ";
  line += temper::format("{}/{}", step_, total_steps_);
  const auto show = [&](const char* label, const char* metric, const char* pattern) {
    const double* value = latest_.find(metric);
    if (value != nullptr && std::isfinite(*value)) line += temper::format("  {} {}", label, number(pattern, *value));
  };
  show("reward", "reward", "%.3f");
  for (const auto& [name, value] : latest_.values)
    if (name.starts_with("eval/") && name.ends_with("/accuracy") && std::isfinite(value))
      line += temper::format("  {} {}", name.substr(5, name.size() - 14), number("%.1f%%", 100 * value));
    else if (name.starts_with("eval/") && name.ends_with("/pair_accuracy") && std::isfinite(value))
      line += temper::format("  pairs {}", number("%.1f%%", 100 * value));
  show("kl", "kl", "%.2g");
  show("loss", "loss", "%.3g");
  show("tokens/s", "perf/throughput", "%.0f");
  if (options_.num_ranks > 1) line += temper::format("  ranks {}", options_.num_ranks);
  show("workers", "async/rollout/workers", "%.0f");
  const double now = options_.seconds();
  const int64_t done = step_ - first_step_;
  if (step_ >= total_steps_) {
    line += "  took " + duration_text(now - begun_s_);
  } else if (done > 0) {
    const double step_s = (now - steps_begun_s_) / static_cast<double>(done);
    line += "  " + duration_text(step_s * static_cast<double>(total_steps_ - step_)) + " left";
  }
  return line;
}

void Progress::draw() {
  if (stage_.empty()) return;
  const int width = options_.width > 0 ? options_.width : terminal_width(options_.out);
  const std::string line = cut(text(true), width - 1);
  std::fprintf(options_.out, "\r%s\x1b[K", line.c_str());
  std::fflush(options_.out);
  drawn_ = true;
}

void Progress::erase() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", options_.out);
  std::fflush(options_.out);
  drawn_ = false;
}

}  // namespace temper
