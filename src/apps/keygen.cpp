// temper keygen DIR: the key pairs of a job's wires (docs/security.md).
#include <iostream>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "comm/channel_keys.h"

namespace temper {

int run_keygen(int argc, char** argv) {
  CommandLine line("keygen",
                   "Makes the keys of a job: DIR with hub.key, worker.key and allowed_workers. The hub uses them by "
                   "async.keys, workers by --keys; machines of workers need a copy of worker.key alone.",
                   "DIR");
  line.add_positional("DIR");
  if (!line.parse(argc, argv)) return 0;
  const std::string folder = line.text("DIR");
  make_job_keys(folder);
  std::cout << "public key of the hub: " << read_key_pair(folder + "/hub.key").public_key << "\n";
  return 0;
}

}  // namespace temper
