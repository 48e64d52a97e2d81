// temper report RUN_DIR: the HTML page of a run, and on request the picture of its learning curve.
#include "observe/report.h"

#include <iostream>

#include "apps/command_line.h"
#include "apps/commands.h"

namespace temper {

int run_report(int argc, char** argv) {
  CommandLine line("report", "Writes RUN_DIR/report.html, one self-contained page, and prints its path.",
                   "RUN_DIR [--curve FILE.svg]");
  line.add_positional("RUN_DIR");
  line.add_option("curve", "FILE.svg", "also draw accuracy and reward over all stages into this file");
  if (!line.parse(argc, argv)) return 0;
  const std::string run_dir = line.text("RUN_DIR");
  if (line.given("curve")) write_learning_curve_svg(run_dir, line.text("curve"));
  std::cout << write_report(run_dir) << "\n";
  return 0;
}

}  // namespace temper
