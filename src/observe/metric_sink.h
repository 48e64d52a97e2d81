// metrics.jsonl and completions.jsonl of a run directory: one JSON object a line, appended as the train loop emits it.
// Apps own the sinks and write from one thread. A failed write (disk full) is counted and warned once; training never
// stops for it.
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/metric_record.h"
#include "core/rollout_types.h"

namespace temper {

// Some groups of a step, as a reader wants to see them.
struct CompletionEntry {
  std::string text;
  std::vector<std::pair<std::string, double>> rewards;  // by name; NaN = failed
  double advantage = std::numeric_limits<double>::quiet_NaN();
  FinishReason finish_reason = FinishReason::kStop;
  std::string error;  // why scoring failed; empty if it did not
};
struct CompletionRecord {
  std::string stage;
  int64_t step = 0;
  std::string prompt;
  std::string answer;  // ground truth; may be empty
  std::vector<CompletionEntry> completions;
  int64_t serial = -1;  // the prompt's running number in the stage; -1: none is kept
};

const char* finish_reason_name(FinishReason reason);  // stop, length, aborted

// One line each, without the newline. Numbers are the shortest text that reads back to the same double, NaN and
// infinity null.
std::string to_json(const MetricRecord& record);
std::string to_json(const CompletionRecord& record);
// The reverse; null becomes NaN. Throws std::invalid_argument with the reason alone: the caller knows file and line.
MetricRecord parse_metric_record(std::string_view line);
CompletionRecord parse_completion_record(std::string_view line);

// How far a run has got: stage_names[stage] is under way and `step` of it is done (-1: not even its evaluation before
// the first).
struct ResumePoint {
  std::vector<std::string> stage_names;
  size_t stage = 0;
  int64_t step = -1;
};
// The length to which metrics.jsonl or completions.jsonl is cut back on resume: up to the first line of a later stage
// or step, a torn last line off. 0 if there is no such file.
int64_t resume_length(const std::string& path, const ResumePoint& point);

class JsonlSink {
 public:
  explicit JsonlSink(const std::string& path, int64_t keep_bytes = -1) : writer_(path, keep_bytes) {}
  void write(const MetricRecord& record) { append(to_json(record)); }
  void write(const CompletionRecord& record) { append(to_json(record)); }
  int64_t num_failed_writes() const { return num_failed_writes_; }

 private:
  void append(const std::string& line);

  LineWriter writer_;
  int64_t num_failed_writes_ = 0;
};

}  // namespace temper
