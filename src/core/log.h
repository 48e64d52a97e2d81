// Log lines on standard error: time, level, text. Standard output is for results alone. Thread-safe.
#pragma once
#include <string>
#include <string_view>

#include "core/format.h"

namespace temper {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

LogLevel parse_log_level(std::string_view name);  // debug, info, warning, error, off; throws ConfigError
void set_log_level(LogLevel level);
void set_terminal_log_level(LogLevel level);  // of standard error alone; the log file keeps all
void set_log_file(const std::string& path);   // every line is also appended there

// A progress bar owns the last line of the terminal: `before` erases it and `after` draws it again around each log
// line.
void set_log_hooks(void (*before)(), void (*after)());

void log_text(LogLevel level, const std::string& text);
void log_to_file(LogLevel level, const std::string& text);  // for the log file alone

template <class... Args>
void log_debug(std::string_view text, const Args&... args) {
  log_text(LogLevel::kDebug, format(text, args...));
}
template <class... Args>
void log_info(std::string_view text, const Args&... args) {
  log_text(LogLevel::kInfo, format(text, args...));
}
template <class... Args>
void log_warning(std::string_view text, const Args&... args) {
  log_text(LogLevel::kWarning, format(text, args...));
}
template <class... Args>
void log_error(std::string_view text, const Args&... args) {
  log_text(LogLevel::kError, format(text, args...));
}

}  // namespace temper
