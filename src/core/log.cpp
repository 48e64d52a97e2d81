#include "core/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <mutex>

#include "core/error.h"
#include "core/log_context.h"

namespace temper {
namespace {

std::mutex mutex;                 // orders hooks and lines
void (*before_line)() = nullptr;  // guarded by mutex
void (*after_line)() = nullptr;   // guarded by mutex
std::string context;              // guarded by mutex

// %* of a pattern: the context, after a blank. Lines are formatted with the mutex held.
class ContextFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& /*line*/, const std::tm& /*time*/, spdlog::memory_buf_t& out) override {
    if (context.empty()) return;
    out.push_back(' ');
    out.append(context.data(), context.data() + context.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override { return std::make_unique<ContextFlag>(); }
};

spdlog::logger& logger() {
  static const auto instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    auto made = std::make_shared<spdlog::logger>("temper", sink);
    made->set_pattern("%H:%M:%S %^%l%$ %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

}  // namespace

LogLevel parse_log_level(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  throw ConfigError("--log-level={} is not a level. Use one of debug, info, warning, error, off.", name);
}

void set_log_level(LogLevel level) { logger().set_level(spdlog_level(level)); }

void set_terminal_log_level(LogLevel level) { logger().sinks().front()->set_level(spdlog_level(level)); }

void set_log_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    auto formatter = std::make_unique<spdlog::pattern_formatter>();
    formatter->add_flag<ContextFlag>('*').set_pattern("%Y-%m-%d %H:%M:%S.%e %l%* %v");
    sink->set_formatter(std::move(formatter));
    std::lock_guard lock(mutex);
    auto& sinks = logger().sinks();
    if (sinks.size() > 1) sinks.resize(1);
    sinks.push_back(std::move(sink));
  } catch (const spdlog::spdlog_ex& error) {
    throw IoError("{}: the log file cannot be opened ({}). Check the folder's permissions.", path, error.what());
  }
}

void set_log_context(std::string fields) {
  std::lock_guard lock(mutex);
  context = std::move(fields);
}

void set_log_hooks(void (*before)(), void (*after)()) {
  std::lock_guard lock(mutex);
  before_line = before;
  after_line = after;
}

void log_text(LogLevel level, const std::string& text) {
  std::lock_guard lock(mutex);
  if (!logger().should_log(spdlog_level(level))) return;
  if (before_line) before_line();
  logger().log(spdlog_level(level), "{}", text);
  if (after_line) after_line();
}

void log_to_file(LogLevel level, const std::string& text) {
  std::lock_guard lock(mutex);
  if (logger().sinks().size() < 2) return;
  spdlog::sinks::sink& file = *logger().sinks().back();
  file.log(spdlog::details::log_msg(logger().name(), spdlog_level(level), text));
  file.flush();
}

}  // namespace temper
