// A checkpoint folder copied from one tier to another, whatever lies where.
#pragma once
#include <string>

#include "checkpoint/agreement.h"
#include "checkpoint/file_system.h"

namespace temper {

// A collective call. Each file of the checkpoint at `from`, on whichever rank's disk it is, comes to the folder `to`,
// which all ranks see: the ranks share the files out; every block is held against the manifest on its way. Committed as
// a save is (docs/checkpoint_format.md, "Commit"). FormatError where a block is damaged or a file is nowhere, IoError;
// then nothing appears at `to`.
void copy_together(FileSystem& files, const std::string& from, const std::string& to, const Agreement& ranks);

}  // namespace temper
