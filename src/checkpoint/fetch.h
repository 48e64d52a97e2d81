// A file of a checkpoint on its way from one rank's disk to others', over the communicator.
#pragma once
#include <string>

#include "checkpoint/agreement.h"
#include "checkpoint/manifest.h"

namespace temper {

// A collective call. Rank `from` reads the file in its folder `source`; ranks whose `target` is not empty write it
// there, over what an earlier call left. Nothing is verified: where reading fails, other bytes arrive, which whoever
// reads them notices. IoError on all ranks where one cannot write.
void fetch_file(FileSystem& files, const FileRecord& record, const std::string& source, int from,
                const std::string& target, const Agreement& ranks);

}  // namespace temper
