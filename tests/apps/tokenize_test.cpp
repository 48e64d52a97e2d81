#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using testing::HasSubstr;

TEST(Tokenize, PrintsOneJsonLineAnInputLine) {
  const RunResult result = run_temper({"tokenize", "--model", "byte"}, "ab\n\n\xC3\xA9 \t\nlast line without an end");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              testing::StartsWith("{\"token_ids\":[97,98]}\n{\"token_ids\":[]}\n{\"token_ids\":[195,169,32,9]}\n"
                                  "{\"token_ids\":[108,97,115,116"));
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 4);
}

TEST(Tokenize, DecodeReversesIt) {
  const std::string ids = run_temper({"tokenize", "--model=byte"}, "1 + 2 = \"3\"\n\xC3\xA9\r\n").out;
  const RunResult back = run_temper({"tokenize", "--model=byte", "--decode"}, ids + "[104, 105]\n");
  EXPECT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(back.out, "{\"text\":\"1 + 2 = \\\"3\\\"\"}\n{\"text\":\"\xC3\xA9\\r\"}\n{\"text\":\"hi\"}\n");
}

TEST(Tokenize, DecodeNamesTheLineThatIsWrong) {
  const RunResult no_ids = run_temper({"tokenize", "--model=byte", "--decode"}, "[1]\nhello\n");
  EXPECT_EQ(no_ids.exit_code, 5);
  EXPECT_THAT(no_ids.err,
              HasSubstr("standard input, line 2: no token ids. Write {\"token_ids\": [1, 2, 3]} on each line"));
  const RunResult too_high = run_temper({"tokenize", "--model=byte", "--decode"}, "{\"token_ids\": [5, 70000]}\n");
  EXPECT_EQ(too_high.exit_code, 5);
  EXPECT_THAT(too_high.err, HasSubstr("line 1: token_ids[1] is 70000. This tokenizer has ids from 0 to "));
}

}  // namespace
}  // namespace temper
