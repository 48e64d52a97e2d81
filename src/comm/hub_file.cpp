#include "comm/hub_file.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "core/process.h"

namespace temper {
namespace {

template <class T>
T value_of(const nlohmann::json& json, const char* name, const std::string& path) {
  try {
    return json.at(name).get<T>();
  } catch (const nlohmann::json::exception&) {
    throw FormatError("{}: has no good \"{}\". Remove it; the trainer writes it anew when it starts.", path, name);
  }
}

}  // namespace

void write_hub_file(const std::string& path, HubFile hub) {
  hub.host = host_name();
  hub.pid = ::getpid();
  hub.process_start = process_start_ticks(hub.pid);
  const nlohmann::ordered_json json = {{"format", 1},
                                       {"address", hub.address},
                                       {"public_key", hub.public_key},
                                       {"weight_addresses", hub.weight_addresses},
                                       {"run_id", hub.run_id},
                                       {"stage", hub.stage},
                                       {"epoch", hub.epoch},
                                       {"host", hub.host},
                                       {"pid", hub.pid},
                                       {"process_start", hub.process_start}};
  write_file_atomically(path, json.dump(1) + "\n");
}

HubFile read_hub_file(const std::string& path) {
  const auto json = nlohmann::json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    throw FormatError("{}: is not a JSON object. Remove it; the trainer writes it anew when it starts.", path);
  if (const auto version = value_of<int64_t>(json, "format", path); version != 1)
    throw FormatError("{}: has format {}, this build reads 1. Run trainer and workers from one build.", path, version);
  return {.address = value_of<std::string>(json, "address", path),
          .public_key = value_of<std::string>(json, "public_key", path),
          .weight_addresses = value_of<std::vector<std::string>>(json, "weight_addresses", path),
          .run_id = value_of<std::string>(json, "run_id", path),
          .stage = value_of<std::string>(json, "stage", path),
          .epoch = value_of<int64_t>(json, "epoch", path),
          .host = value_of<std::string>(json, "host", path),
          .pid = value_of<int64_t>(json, "pid", path),
          .process_start = value_of<int64_t>(json, "process_start", path)};
}

std::optional<std::string> why_stale(const HubFile& hub) {
  if (hub.host != host_name()) return std::nullopt;
  const int64_t start = process_start_ticks(hub.pid);
  if (start < 0) return format("process {} on this machine is gone", hub.pid);
  if (start != hub.process_start) return format("process {} on this machine is another one now", hub.pid);
  return std::nullopt;
}

}  // namespace temper
