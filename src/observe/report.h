// `temper report RUN_DIR`: one self-contained HTML page of a run (finished, stopped or under way), and the picture of
// its learning curve. Nothing is loaded from elsewhere, so the page can be sent by mail; without scripts only the hover
// values are missing.
#pragma once
#include <string>

#include "observe/run_log.h"

namespace temper {

std::string report_html(const RunLog& run);
// Writes RUN_DIR/report.html and returns its path. Errors: those of read_run, and IoError where it cannot be written.
std::string write_report(const std::string& run_dir);

// Accuracy and reward over all stages as an SVG file that follows the reader's light or dark mode.
void write_learning_curve_svg(const std::string& run_dir, const std::string& path);

}  // namespace temper
