// A run directory read back for people: metrics stage by stage, a few completions of each stage, the configuration.
// Lines are read one at a time; of completions.jsonl only the chosen ones are parsed.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "core/metric_record.h"
#include "observe/metric_sink.h"

namespace temper {

struct StageLog {
  std::string name;
  std::vector<MetricRecord> records;          // in the order of steps
  std::vector<CompletionRecord> completions;  // up to two groups each of an early, a middle and a late step

  // The value of a metric at each record; NaN where a record lacks it.
  std::vector<double> values(std::string_view metric) const;
  std::vector<double> steps() const;
  // First and last finite value.
  std::optional<std::pair<double, double>> first_and_last(std::string_view metric) const;
  // Every metric's name, in the order of first appearance.
  std::vector<std::string> metrics() const;
};

struct RunLog {
  std::string dir;
  std::string name;
  std::vector<StageLog> stages;  // at least one, each with at least one record
  std::optional<Config> config;  // nothing where config.toml is missing or of another version
  std::string config_text;
  std::vector<std::string> notes;  // what is missing or was left out, for the reader

  const StageConfig* config_of(const std::string& stage) const;
};

// IoError if the folder or metrics.jsonl is missing; FormatError with the line's number if metrics.jsonl or
// completions.jsonl holds anything but our records. A torn last line (a crash, a full disk) is left out and noted.
RunLog read_run(const std::string& run_dir);

}  // namespace temper
