#include "observe/metric_sink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/error.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::Pair;

constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

class MetricSink : public testing::Test {
 protected:
  MetricSink() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~MetricSink() override { std::filesystem::remove_all(folder_); }
  const std::string folder_ =
      testing::TempDir() + "metric_sink_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string path_ = folder_ + "/metrics.jsonl";
};

MetricRecord record(const std::string& stage, int64_t step, double loss) {
  MetricRecord made{stage, step, step, 1700000000.25, {}};
  made.set("loss", loss);
  return made;
}

TEST_F(MetricSink, WritesTheHeadThenTheValuesInTheirOrder) {
  MetricRecord made{
      "grpo", 3, 13, 1700000000.25, {{"reward", 0.1}, {"kl", 1e-7}, {"num_tokens", 123456}, {"accuracy", 1.0 / 3}}};
  EXPECT_EQ(to_json(made),
            R"({"stage": "grpo", "step": 3, "policy_version": 13, "time": 1700000000.25, "reward": 0.1, "kl": 1e-07, )"
            R"("num_tokens": 123456, "accuracy": 0.3333333333333333})");
}

TEST_F(MetricSink, WritesNaNAndInfinityAsNullAndReadsThemAsNaN) {
  MetricRecord made{"a", 1, 1, 0, {{"x", kNotANumber}, {"y", -std::numeric_limits<double>::infinity()}, {"z", 2}}};
  const std::string line = to_json(made);
  EXPECT_EQ(line, R"({"stage": "a", "step": 1, "policy_version": 1, "time": 0, "x": null, "y": null, "z": 2})");
  const MetricRecord read = parse_metric_record(line);
  EXPECT_TRUE(std::isnan(*read.find("x")));
  EXPECT_EQ(*read.find("z"), 2);
}

TEST_F(MetricSink, NumbersReadBackToTheSameBits) {
  MetricRecord made{"a", 1, 1, 1763928470.1234567, {}};
  const double values[] = {
      0.1, 1e-300, 123456789.123456789, 5e-324, -2.2250738585072014e-308, 1.7976931348623157e308, 2.0 / 3};
  for (const double value : values) made.values.emplace_back(format("v{}", made.values.size()), value);
  const MetricRecord read = parse_metric_record(to_json(made));
  EXPECT_EQ(read.time, made.time);
  EXPECT_EQ(read.values, made.values);
}

TEST_F(MetricSink, CompletionsKeepEveryFieldAndBrokenUtf8BecomesTheReplacementCharacter) {
  CompletionRecord made{"grpo", 4, "2+2=\n\"?\"", "4", {}};
  made.completions.push_back({"four", {{"exact", 0}, {"format", 1}}, -0.5, FinishReason::kStop, ""});
  made.completions.push_back(
      {"4 \xf0\x9f", {{"exact", kNotANumber}, {"format", 1}}, kNotANumber, FinishReason::kLength, "exact: too late"});
  made.serial = 17;
  const CompletionRecord read = parse_completion_record(to_json(made));
  EXPECT_EQ(read.stage, "grpo");
  EXPECT_EQ(read.serial, 17);
  EXPECT_EQ(read.step, 4);
  EXPECT_EQ(read.prompt, "2+2=\n\"?\"");
  EXPECT_EQ(read.answer, "4");
  ASSERT_EQ(read.completions.size(), 2u);
  EXPECT_EQ(read.completions[0].text, "four");
  EXPECT_THAT(read.completions[0].rewards, ElementsAre(Pair("exact", 0.0), Pair("format", 1.0)));
  EXPECT_EQ(read.completions[0].advantage, -0.5);
  EXPECT_EQ(read.completions[0].error, "");
  EXPECT_EQ(read.completions[1].text, "4 \xef\xbf\xbd");
  EXPECT_TRUE(std::isnan(read.completions[1].rewards[0].second));
  EXPECT_TRUE(std::isnan(read.completions[1].advantage));
  EXPECT_EQ(read.completions[1].finish_reason, FinishReason::kLength);
  EXPECT_EQ(read.completions[1].error, "exact: too late");
}

TEST_F(MetricSink, ResumeCutsBackToTheLastRecordOfTheResumedStep) {
  {
    JsonlSink sink(path_);
    for (const int step : {0, 1, 2, 3}) sink.write(record("sft", step, 1.0));
    for (const int step : {0, 1, 2, 3}) sink.write(record("grpo", step, 2.0));
  }
  const std::vector<std::string> stages = {"sft", "grpo", "polish"};
  const auto lines_kept = [&](size_t stage, int64_t step) {
    std::ifstream in(path_);
    std::string all((std::istreambuf_iterator<char>(in)), {});
    const auto kept = static_cast<size_t>(resume_length(path_, {stages, stage, step}));
    EXPECT_TRUE(kept == 0 || all[kept - 1] == '\n');
    return std::count(all.begin(), all.begin() + static_cast<int64_t>(kept), '\n');
  };
  EXPECT_EQ(lines_kept(0, -1), 0);
  EXPECT_EQ(lines_kept(0, 0), 1);
  EXPECT_EQ(lines_kept(0, 2), 3);
  EXPECT_EQ(lines_kept(1, -1), 4);
  EXPECT_EQ(lines_kept(1, 1), 6);
  EXPECT_EQ(lines_kept(2, -1), 8);
  {
    JsonlSink sink(path_, resume_length(path_, {stages, 1, 1}));
    sink.write(record("grpo", 2, 7.5));
  }
  std::ifstream in(path_);
  std::vector<double> losses;
  for (std::string line; std::getline(in, line);) losses.push_back(*parse_metric_record(line).find("loss"));
  EXPECT_THAT(losses, ElementsAre(1, 1, 1, 1, 2, 2, 7.5));
}

TEST_F(MetricSink, ResumeCutsATornLastLineOffAndKeepsACompletionFileInStep) {
  std::ofstream(path_) << R"({"stage": "sft", "step": 1, "prompt": "a", "completions": []})"
                       << "\n"
                       << R"({"stage": "sft", "st)";
  EXPECT_EQ(resume_length(path_, {{"sft"}, 0, 9}), 62);
  EXPECT_EQ(resume_length(path_, {{"sft"}, 0, 0}), 0);
  EXPECT_EQ(resume_length(folder_ + "/none.jsonl", {{"sft"}, 0, 9}), 0);
}

TEST_F(MetricSink, AFullDiskIsCountedAndLeavesWholeLinesOnly) {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  JsonlSink sink(path_);
  sink.write(record("sft", 1, 1.0));
  const rlimit small{100, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  sink.write(record("sft", 2, 1.0));
  sink.write(record("sft", 3, 1.0));
  setrlimit(RLIMIT_FSIZE, &old);
  sink.write(record("sft", 4, 1.0));
  EXPECT_EQ(sink.num_failed_writes(), 2);
  std::ifstream in(path_);
  std::vector<int64_t> steps;
  for (std::string line; std::getline(in, line);) steps.push_back(parse_metric_record(line).step);
  EXPECT_THAT(steps, ElementsAre(1, 4));
}

TEST_F(MetricSink, ForeignLinesAreRefusedWithTheReason) {
  const auto reason = [](const std::string& line) {
    try {
      parse_metric_record(line);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(reason("no"), "is not JSON");
  EXPECT_EQ(reason("[1]"), "is not a JSON object");
  EXPECT_EQ(reason(R"({"step": 1})"), "has no string \"stage\"");
  EXPECT_EQ(reason(R"({"stage": "a", "step": "1"})"), "has no integer \"step\"");
  EXPECT_EQ(reason(R"({"stage": "a", "step": 1, "policy_version": 1, "time": 0, "loss": "high"})"),
            "\"loss\" is not a number");
}

}  // namespace
}  // namespace temper
