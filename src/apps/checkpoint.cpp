// temper checkpoint ls|info|verify PATH.
#include <iostream>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "checkpoint/inspect.h"
#include "core/error.h"

namespace temper {

int run_checkpoint(int argc, char** argv) {
  CommandLine line("checkpoint",
                   "ls lists checkpoints, info describes them, verify reads every byte.\n"
                   "PATH is a checkpoint, a stage's folder of them, a checkpoints folder, or a run directory.",
                   "ls|info|verify PATH");
  line.add_positional("ACTION");
  line.add_positional("PATH");
  if (!line.parse(argc, argv)) return 0;

  const std::string action = line.one_of("ACTION", {"ls", "info", "verify"});
  const std::string path = line.text("PATH");
  FileSystem files;
  if (action == "ls") {
    std::cout << list_checkpoints(files, path);
  } else if (action == "info") {
    std::cout << describe_checkpoint(files, path);
  } else {
    const VerifyReport report = verify_checkpoints(files, path);
    std::cout << report.text;
    if (!report.good) return static_cast<int>(ExitCode::kFormat);
  }
  return 0;
}

}  // namespace temper
