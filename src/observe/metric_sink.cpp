#include "observe/metric_sink.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/log.h"

namespace temper {
namespace {

using Json = nlohmann::ordered_json;

// Completions may end in the middle of a character: invalid UTF-8 becomes U+FFFD.
std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  return std::string(digits, end);
}

double to_number(const Json& value, const std::string& key) {
  if (value.is_null()) return std::numeric_limits<double>::quiet_NaN();
  if (!value.is_number()) throw std::invalid_argument(format("\"{}\" is not a number", key));
  return value.get<double>();
}

Json parse_object(std::string_view line) {
  Json object;
  try {
    object = Json::parse(line);
  } catch (const Json::exception&) {
    throw std::invalid_argument("is not JSON");
  }
  if (!object.is_object()) throw std::invalid_argument("is not a JSON object");
  return object;
}

std::string take_string(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) throw std::invalid_argument(format("has no string \"{}\"", key));
  return found->get<std::string>();
}

int64_t take_integer(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer())
    throw std::invalid_argument(format("has no integer \"{}\"", key));
  return found->get<int64_t>();
}

FinishReason parse_finish_reason(const std::string& name) {
  for (const FinishReason reason : {FinishReason::kStop, FinishReason::kLength, FinishReason::kAborted})
    if (name == finish_reason_name(reason)) return reason;
  throw std::invalid_argument(format("finish_reason \"{}\" is not stop, length or aborted", name));
}

bool comes_after(const Json& object, const ResumePoint& point) {
  const std::string stage = take_string(object, "stage");
  const auto found = std::find(point.stage_names.begin(), point.stage_names.end(), stage);
  const auto index = static_cast<size_t>(found - point.stage_names.begin());  // an unknown stage counts as later
  return index > point.stage || (index == point.stage && take_integer(object, "step") > point.step);
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      return "aborted";
  }
  return "aborted";
}

std::string to_json(const MetricRecord& record) {
  std::string line = format("{\"stage\": {}, \"step\": {}, \"policy_version\": {}, \"time\": {}", quoted(record.stage),
                            record.step, record.policy_version, number(record.time));
  for (const auto& [name, value] : record.values) line += ", " + quoted(name) + ": " + number(value);
  return line + "}";
}

std::string to_json(const CompletionRecord& record) {
  const std::string serial = record.serial < 0 ? "" : format("\"serial\": {}, ", record.serial);
  std::string line = format("{\"stage\": {}, \"step\": {}, {}\"prompt\": {}, \"answer\": {}, \"completions\": [",
                            quoted(record.stage), record.step, serial, quoted(record.prompt), quoted(record.answer));
  const char* separator = "";
  for (const CompletionEntry& entry : record.completions) {
    line += separator;
    separator = ", ";
    line += "{\"text\": " + quoted(entry.text) + ", \"rewards\": {";
    for (size_t i = 0; i < entry.rewards.size(); ++i)
      line += (i > 0 ? ", " : "") + quoted(entry.rewards[i].first) + ": " + number(entry.rewards[i].second);
    line += "}, \"advantage\": " + number(entry.advantage) + ", \"finish_reason\": \"" +
            finish_reason_name(entry.finish_reason) + "\"";
    if (!entry.error.empty()) line += ", \"error\": " + quoted(entry.error);
    line += "}";
  }
  return line + "]}";
}

MetricRecord parse_metric_record(std::string_view line) {
  const Json object = parse_object(line);
  MetricRecord record;
  record.stage = take_string(object, "stage");
  record.step = take_integer(object, "step");
  record.policy_version = take_integer(object, "policy_version");
  if (!object.contains("time")) throw std::invalid_argument("has no number \"time\"");
  record.time = to_number(object["time"], "time");
  for (const auto& [name, value] : object.items())
    if (name != "stage" && name != "step" && name != "policy_version" && name != "time")
      record.values.emplace_back(name, to_number(value, name));
  return record;
}

CompletionRecord parse_completion_record(std::string_view line) {
  const Json object = parse_object(line);
  CompletionRecord record;
  record.stage = take_string(object, "stage");
  record.step = take_integer(object, "step");
  if (object.contains("serial")) record.serial = take_integer(object, "serial");
  record.prompt = take_string(object, "prompt");
  if (object.contains("answer")) record.answer = take_string(object, "answer");
  const auto completions = object.find("completions");
  if (completions == object.end() || !completions->is_array())
    throw std::invalid_argument("has no list \"completions\"");
  for (const Json& item : *completions) {
    if (!item.is_object()) throw std::invalid_argument("has a completion that is not an object");
    CompletionEntry entry;
    entry.text = take_string(item, "text");
    if (item.contains("rewards")) {
      if (!item["rewards"].is_object()) throw std::invalid_argument("\"rewards\" is not an object");
      for (const auto& [name, value] : item["rewards"].items())
        entry.rewards.emplace_back(name, to_number(value, name));
    }
    if (item.contains("advantage")) entry.advantage = to_number(item["advantage"], "advantage");
    entry.finish_reason = parse_finish_reason(take_string(item, "finish_reason"));
    if (item.contains("error")) entry.error = take_string(item, "error");
    record.completions.push_back(std::move(entry));
  }
  return record;
}

int64_t resume_length(const std::string& path, const ResumePoint& point) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return 0;
  int64_t kept = 0, offset = 0, number_of_line = 0;
  std::string line;
  while (std::getline(in, line)) {
    if (in.eof()) {
      log_warning("{}: line {} is torn (no end of line) and is cut off.", path, number_of_line + 1);
      break;
    }
    ++number_of_line;
    offset += static_cast<int64_t>(line.size()) + 1;
    try {
      if (comes_after(parse_object(line), point)) break;
    } catch (const std::invalid_argument& error) {
      log_warning("{}: line {} {}; it is left as it is.", path, number_of_line, error.what());
    }
    kept = offset;
  }
  return kept;
}

void JsonlSink::append(const std::string& line) {
  if (writer_.append(line)) return;
  if (++num_failed_writes_ == 1)
    log_warning("{}: a line could not be written; training goes on without it. Free some space on that disk.",
                writer_.path());
}

}  // namespace temper
