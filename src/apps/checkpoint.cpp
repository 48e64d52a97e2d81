// temper checkpoint ls|info|verify|reshard PATH.
#include <iostream>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "checkpoint/inspect.h"
#include "checkpoint/reshard.h"
#include "core/error.h"

namespace temper {

int run_checkpoint(int argc, char** argv) {
  CommandLine line(
      "checkpoint",
      "ls lists checkpoints, info describes them, verify reads every byte, reshard writes one anew in\n"
      "another number of files.\n"
      "PATH is a checkpoint, a stage's folder of them, a checkpoints folder, or a run directory (info and\n"
      "reshard take the first that ls shows).",
      "ls|info|verify|reshard PATH");
  line.add_positional("ACTION");
  line.add_positional("PATH");
  line.add_option("out", "DIR", "reshard: folder in which the new checkpoint is made, under the old one's name");
  line.add_option("shards", "N", "reshard: number of shards", "1");
  if (!line.parse(argc, argv)) return 0;

  const std::string action = line.one_of("ACTION", {"ls", "info", "verify", "reshard"});
  const std::string path = line.text("PATH");
  FileSystem files;
  if (action == "ls") {
    std::cout << list_checkpoints(files, path);
  } else if (action == "info") {
    std::cout << describe_checkpoint(files, path);
  } else if (action == "reshard") {
    if (!line.given("out"))
      throw ConfigError("checkpoint reshard: say with --out=DIR where to put the new checkpoint.");
    const std::string from = find_checkpoints(files, path).front();
    const std::string to = line.text("out") + "/" + base_name(from);
    reshard_checkpoint(files, from, to, static_cast<int>(line.integer("shards", 1, 1 << 16)));
    std::cout << to << "\n";
  } else {
    const VerifyReport report = verify_checkpoints(files, path);
    std::cout << report.text;
    if (!report.good) return static_cast<int>(ExitCode::kFormat);
  }
  return 0;
}

}  // namespace temper
