// The charts of a report: which metrics share one, and how they are drawn. Internal to observe.
#pragma once
#include <string>
#include <vector>

#include "observe/run_log.h"
#include "observe/svg_chart.h"

namespace temper {

struct ChartCard {
  Chart chart;
  std::vector<std::string> legend;  // a text for each series; metric names unless it says more
  std::string note;                 // such as "each point is the mean of 4 steps"
};

// Accuracy of every evaluation set over all stages, with the training reward behind where it lies in [0, 1]. x is the
// time at work (a pause before a resumed run left out). No series if there is neither.
Chart learning_curve(const RunLog& run);

// The known charts of a stage that have something to show, in a fixed order.
std::vector<ChartCard> stage_charts(const StageLog& stage);
// One for each metric that those leave out.
std::vector<ChartCard> further_charts(const StageLog& stage);
// "kl = 0, num_tokens = 512": metrics that never change over at least three records and have no chart for that reason.
std::vector<std::string> constant_metrics(const StageLog& stage);

}  // namespace temper
