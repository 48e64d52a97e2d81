#include "core/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/files.h"
#include "core/log_context.h"

namespace temper {
namespace {

TEST(LogFile, EachLineSaysTimeLevelAndContext) {
  const std::string path = testing::TempDir() + "log_test.log";
  remove(path.c_str());
  set_log_file(path);
  log_info("before");
  set_log_context("rank=1 stage=grpo step=12");
  log_warning("halfway {}", 7);
  set_log_context("");
  log_to_file(LogLevel::kError, "after");
  const std::string time = "[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3} ";
  EXPECT_THAT(read_file(path),
              testing::ContainsRegex("^" + time + "info before\n" + time +
                                     "warning rank=1 stage=grpo step=12 halfway 7\n" + time + "error after\n$"));
}

}  // namespace
}  // namespace temper
