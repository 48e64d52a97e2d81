#include "observe/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/log.h"

namespace temper {
namespace {

using testing::HasSubstr;

// The screen that a terminal of one endless row a line shows after these bytes: what \r and "erase to the end of line"
// do.
std::string screen(const std::string& bytes) {
  std::string lines, line;
  size_t column = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\r') {
      column = 0;
    } else if (bytes.compare(i, 3, "\x1b[K") == 0) {
      line.resize(std::min(column, line.size()));
      i += 2;
    } else if (bytes[i] == '\n') {
      lines += line + "\n";
      line.clear();
      column = 0;
    } else {
      line.resize(std::max(line.size(), column));
      line.replace(column++, 1, 1, bytes[i]);
    }
  }
  return lines + line;
}

class ProgressTest : public testing::Test {
 protected:
  ~ProgressTest() override { std::fclose(out_); }
  std::string written() {
    std::fflush(out_);
    std::rewind(out_);
    std::string bytes(1 << 16, '\0');
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), out_));
    return bytes;
  }
  ProgressOptions options(int terminal) {
    return {.out = out_, .terminal = terminal, .width = 120, .interval_s = 10, .seconds = [this] { return now_; }};
  }
  static MetricRecord record(int64_t step, double reward) {
    MetricRecord made{"grpo", step, step, 0, {}};
    made.set("reward", reward);
    made.set("kl", 0.0123);
    made.set("loss", std::numeric_limits<double>::quiet_NaN());
    made.set("perf/throughput", 1234.4);
    return made;
  }
  FILE* out_ = std::tmpfile();
  double now_ = 100;
};

TEST_F(ProgressTest, TheBarShowsStageStepsFiguresAndTimeLeft) {
  Progress progress(options(1));
  progress.begin_stage("grpo", 40);
  now_ += 30;
  progress.update(record(10, 0.53125));
  EXPECT_EQ(screen(written()), "grpo ██████░░░░░░░░░░░░░░░░░░ 10/40  reward 0.531  kl 0.012  tokens/s 1234  1:30 left");
}

TEST_F(ProgressTest, StepsOfAnEarlierProcessDoNotCountInTheTimeLeft) {
  Progress progress(options(1));
  progress.begin_stage("grpo", 40, 30);
  now_ += 20;
  progress.update(record(32, 0.5));
  EXPECT_THAT(screen(written()), HasSubstr("32/40  reward 0.500  kl 0.012  tokens/s 1234  1:20 left"));
}

TEST_F(ProgressTest, TheEvaluationBeforeTheFirstStepDoesNotCountInTheTimeLeft) {
  Progress progress(options(0));
  testing::internal::CaptureStderr();
  progress.begin_stage("sft", 4);
  now_ += 600;
  progress.update(record(0, 0));
  now_ += 20;
  progress.update(record(1, 0));
  now_ += 60;
  progress.update(record(4, 0));
  const std::string logged = testing::internal::GetCapturedStderr();
  EXPECT_THAT(logged, HasSubstr("1:00 left"));
  EXPECT_THAT(logged, HasSubstr("took 11:20"));
}

TEST_F(ProgressTest, IsRedrawnAtMostTenTimesASecond) {
  Progress progress(options(1));
  progress.begin_stage("grpo", 1000);
  for (int step = 1; step <= 100; ++step) {
    now_ += 0.01;
    progress.update(record(step, 0.5));
  }
  const std::string bytes = written();
  EXPECT_LE(std::count(bytes.begin(), bytes.end(), '\r'), 12);
}

TEST_F(ProgressTest, LogLinesEraseItFirstAndDrawItAgain) {
  testing::internal::CaptureStderr();
  Progress progress(options(1));
  progress.begin_stage("sft", 4);
  const size_t before = written().size();
  log_warning("a line");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("a line"));
  const std::string bytes = written().substr(before);
  EXPECT_TRUE(bytes.starts_with("\r\x1b[K")) << bytes;
  EXPECT_THAT(bytes.substr(4), HasSubstr("sft ░"));
}

TEST_F(ProgressTest, EndsByErasingItselfAndLeavingOneLine) {
  testing::internal::CaptureStderr();
  {
    Progress progress(options(1));
    progress.begin_stage("grpo", 10);
    now_ += 65;
    progress.update(record(10, 0.9));
    progress.end_stage();
  }
  EXPECT_EQ(screen(written()), "");
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("grpo 10/10  reward 0.900  kl 0.012  tokens/s 1234  took 1:05"));
}

TEST_F(ProgressTest, WithoutATerminalItLogsTheFirstStepThenEveryIntervalThenTheLast) {
  testing::internal::CaptureStderr();
  Progress progress(options(0));
  progress.begin_stage("grpo", 26);
  for (int step = 1; step <= 26; ++step) {
    now_ += 1;
    progress.update(record(step, 0.5));
  }
  progress.end_stage();
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;
  for (const char* step : {" 1/26", " 11/26", " 21/26", " 26/26"}) EXPECT_THAT(text, HasSubstr(step));
  EXPECT_EQ(written(), "");
}

TEST_F(ProgressTest, ANarrowTerminalCutsTheLineBetweenCharacters) {
  ProgressOptions narrow = options(1);
  narrow.width = 11;
  Progress progress(narrow);
  progress.begin_stage("grpo", 10);
  EXPECT_EQ(screen(written()), "grpo ░░░░░");
}

TEST(DurationText, ReadsAsAClock) {
  EXPECT_EQ(duration_text(0), "0:00");
  EXPECT_EQ(duration_text(75.4), "1:15");
  EXPECT_EQ(duration_text(4000), "1:06:40");
  EXPECT_EQ(duration_text(-1), "?");
  EXPECT_EQ(duration_text(std::numeric_limits<double>::infinity()), "?");
}

}  // namespace
}  // namespace temper
