#include "observe/run_log.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>

#include "config/load.h"
#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

constexpr size_t kGroupsPerMoment = 2;

// Calls visit(line, number, offset) for each whole line; false if the last one is torn. Errors of visit name file and
// line.
template <class Visit>
bool for_each_line(const std::string& path, Visit visit) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError("{}: cannot be opened. Check the folder's permissions.", path);
  std::string line;
  int64_t number = 0, offset = 0;
  while (std::getline(in, line)) {
    ++number;
    if (in.eof()) return false;
    try {
      visit(line, number, offset);
    } catch (const std::invalid_argument& error) {
      throw FormatError("{}: line {} {}. It is not a line of a temper run; restore the file or remove that line.", path,
                        number, error.what());
    }
    offset += static_cast<int64_t>(line.size()) + 1;
  }
  return true;
}

StageLog& stage_named(RunLog& run, const std::string& name) {
  for (StageLog& stage : run.stages)
    if (stage.name == name) return stage;
  run.stages.push_back({name, {}, {}});
  return run.stages.back();
}

void read_metrics(RunLog& run, const std::string& path) {
  const bool whole = for_each_line(path, [&](const std::string& line, int64_t, int64_t) {
    MetricRecord record = parse_metric_record(line);
    StageLog& stage = stage_named(run, record.stage);
    if (!stage.records.empty() && record.step < stage.records.back().step)
      throw std::invalid_argument(format("goes back from step {} to step {} of stage {}", stage.records.back().step,
                                         record.step, record.stage));
    stage.records.push_back(std::move(record));
  });
  if (!whole) run.notes.push_back("The last line of metrics.jsonl is torn and left out.");
  if (run.stages.empty())
    throw FormatError("{}: has no records yet. Wait until the run has finished its first step.", path);
}

// Stage and step without parsing what follows: our sink writes them first.
bool read_head(const std::string& line, std::string& stage, int64_t& step) {
  constexpr std::string_view kStage = "{\"stage\": \"", kStep = "\", \"step\": ";
  if (!line.starts_with(kStage)) return false;
  const size_t end = line.find('"', kStage.size());
  if (end == std::string::npos || line.compare(end, kStep.size(), kStep) != 0) return false;
  stage = line.substr(kStage.size(), end - kStage.size());
  if (stage.find('\\') != std::string::npos) return false;
  char* rest = nullptr;
  step = std::strtoll(line.c_str() + end + kStep.size(), &rest, 10);
  return rest != line.c_str() + end + kStep.size() && *rest == ',' && line.ends_with("]}");
}

struct Place {
  std::string stage;
  int64_t step, offset, number;
};

// First, middle and last of the steps that have completions; of each the first groups.
std::vector<Place> choose(const std::vector<Place>& places, const std::string& stage) {
  std::vector<int64_t> steps;
  for (const Place& place : places)
    if (place.stage == stage && (steps.empty() || steps.back() != place.step)) steps.push_back(place.step);
  if (steps.empty()) return {};
  std::vector<int64_t> wanted = {steps.front(), steps[steps.size() / 2], steps.back()};
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  std::vector<Place> chosen;
  for (const int64_t step : wanted) {
    size_t groups = 0;
    for (const Place& place : places)
      if (place.stage == stage && place.step == step && groups++ < kGroupsPerMoment) chosen.push_back(place);
  }
  return chosen;
}

void read_completions(RunLog& run, const std::string& path) {
  std::vector<Place> places;
  const bool whole = for_each_line(path, [&](const std::string& line, int64_t number, int64_t offset) {
    Place place{"", 0, offset, number};
    if (!read_head(line, place.stage, place.step)) {
      const CompletionRecord record = parse_completion_record(line);
      place.stage = record.stage;
      place.step = record.step;
    }
    places.push_back(std::move(place));
  });
  if (!whole) run.notes.push_back("The last line of completions.jsonl is torn and left out.");
  std::ifstream in(path, std::ios::binary);
  for (StageLog& stage : run.stages)
    for (const Place& place : choose(places, stage.name)) {
      std::string line;
      in.seekg(place.offset);
      std::getline(in, line);
      try {
        stage.completions.push_back(parse_completion_record(line));
      } catch (const std::invalid_argument& error) {
        throw FormatError("{}: line {} {}. It is not a line of a temper run; restore the file or remove that line.",
                          path, place.number, error.what());
      }
    }
}

void read_config(RunLog& run, const std::string& path) {
  if (!file_exists(path)) {
    run.notes.push_back("config.toml is missing: model and data are not shown.");
    return;
  }
  run.config_text = read_file(path);
  try {
    run.config = parse_config(run.config_text, {}, path);
    if (!run.config->run.name.empty()) run.name = run.config->run.name;
  } catch (const ConfigError&) {
    run.notes.push_back(
        "config.toml was written by another version or changed by hand: model and data are shown as its text alone.");
  }
}

}  // namespace

std::vector<double> StageLog::values(std::string_view metric) const {
  std::vector<double> values;
  for (const MetricRecord& record : records) {
    const double* value = record.find(metric);
    values.push_back(value != nullptr ? *value : std::numeric_limits<double>::quiet_NaN());
  }
  return values;
}

std::vector<double> StageLog::steps() const {
  std::vector<double> steps;
  for (const MetricRecord& record : records) steps.push_back(static_cast<double>(record.step));
  return steps;
}

std::optional<std::pair<double, double>> StageLog::first_and_last(std::string_view metric) const {
  std::optional<std::pair<double, double>> ends;
  for (const double value : values(metric)) {
    if (!std::isfinite(value)) continue;
    if (!ends) ends.emplace(value, value);
    ends->second = value;
  }
  return ends;
}

std::vector<std::string> StageLog::metrics() const {
  std::vector<std::string> names;
  for (const MetricRecord& record : records)
    for (const auto& [metric, value] : record.values)
      if (std::find(names.begin(), names.end(), metric) == names.end()) names.push_back(metric);
  return names;
}

const StageConfig* RunLog::config_of(const std::string& stage) const {
  if (!config) return nullptr;
  for (const StageConfig& candidate : config->stages)
    if (candidate.name == stage) return &candidate;
  return nullptr;
}

RunLog read_run(const std::string& run_dir) {
  namespace fs = std::filesystem;
  std::error_code code;
  if (!fs::is_directory(run_dir, code))
    throw IoError("{}: is not a folder. Give the directory of a run, such as runs/NAME.", run_dir);
  RunLog run;
  run.dir = run_dir;
  fs::path folder = fs::absolute(run_dir, code).lexically_normal();
  if (folder.filename().empty()) folder = folder.parent_path();
  run.name = folder.filename().string();
  const std::string metrics = run_dir + "/metrics.jsonl";
  if (!file_exists(metrics))
    throw IoError("{}: holds no metrics.jsonl, so it is not the directory of a run. Give one such as runs/NAME.",
                  run_dir);
  read_metrics(run, metrics);
  const std::string completions = run_dir + "/completions.jsonl";
  if (file_exists(completions))
    read_completions(run, completions);
  else
    run.notes.push_back("completions.jsonl is missing (log.completions = 0?): no completions are shown.");
  read_config(run, run_dir + "/config.toml");
  return run;
}

}  // namespace temper
