// What a run shows while it works, on standard error: on a terminal a bar on the last line, redrawn at most ten times a
// second, elsewhere a log line now and then (the first step, every interval_s, the last). Any thread may log meanwhile:
// the bar registers log hooks that erase it before a line and draw it again after. One bar at a time; calls come from
// one thread.
#pragma once
#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>

#include "core/metric_record.h"

namespace temper {

struct ProgressOptions {
  FILE* out = stderr;
  int terminal = -1;                // 0 no, 1 yes, -1 as isatty(out) says
  int width = 0;                    // columns; 0 asks the terminal
  double interval_s = 10;           // between plain lines
  int num_ranks = 1;                // shown where there are several
  std::function<double()> seconds;  // a steady clock; empty: the system's
};

class Progress {
 public:
  explicit Progress(ProgressOptions options = {});
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // first_step: steps of this stage that were done before (a resumed run); they do not count in the time left, nor does
  // what comes before the first step (an evaluation).
  void begin_stage(const std::string& stage, int64_t total_steps, int64_t first_step = 0);
  // Takes step, reward, kl, loss, eval/*/accuracy and perf/throughput and async/rollout/workers from the record.
  void update(const MetricRecord& record);
  // The stage's last state as one line that stays.
  void end_stage();

 private:
  std::string text(bool with_bar) const;
  void draw();   // REQUIRES: mutex_ held
  void erase();  // REQUIRES: mutex_ held
  static void before_log_line();
  static void after_log_line();

  ProgressOptions options_;
  bool terminal_;
  std::mutex mutex_;  // held from before a log line until after it
  bool drawn_ = false;
  std::string stage_;
  int64_t total_steps_ = 0, first_step_ = 0, step_ = 0;
  double begun_s_ = 0, steps_begun_s_ = 0, shown_s_ = 0;
  bool shown_ = false, last_shown_ = false;
  MetricRecord latest_;
};

// 75 -> "1:15", 4000 -> "1:06:40"; negative or not finite -> "?"
std::string duration_text(double seconds);

}  // namespace temper
