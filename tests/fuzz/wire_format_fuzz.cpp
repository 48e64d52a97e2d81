// Whatever bytes come, read_group() throws FormatError or gives a group that is written and read as itself.
#include <cstdlib>

#include "comm/wire_format.h"
#include "core/error.h"

using namespace temper;

namespace {

std::string write(const RolloutGroup& group) {
  WireWriter writer;
  write_group(group, writer);
  return writer.take();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  WireReader reader(std::string_view(reinterpret_cast<const char*>(data), size));
  RolloutGroup group;
  try {
    group = read_group(reader);
  } catch (const FormatError&) {
    return 0;
  }
  const std::string once = write(group);
  WireReader again(once);
  if (write(read_group(again)) != once || !again.at_end()) std::abort();
  return 0;
}
