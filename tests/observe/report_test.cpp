#include "observe/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/files.h"
#include "observe/report_charts.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class Report : public testing::Test {
 protected:
  Report() {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~Report() override { std::filesystem::remove_all(dir_); }

  void append(const std::string& file, const std::string& text) {
    std::ofstream(dir_ + "/" + file, std::ios::app) << text;
  }
  void metric(const std::string& stage, int64_t step, std::vector<std::pair<std::string, double>> values) {
    append("metrics.jsonl",
           to_json(MetricRecord{stage, step, step, 1700000000.0 + static_cast<double>(++time_), std::move(values)}) +
               "\n");
  }
  void completion(const std::string& stage, int64_t step, const std::string& prompt,
                  std::vector<CompletionEntry> entries) {
    append("completions.jsonl", to_json(CompletionRecord{stage, step, prompt, "7", std::move(entries)}) + "\n");
  }
  // sft then grpo on one evaluation set
  void small_run() {
    metric("sft", 0, {{"eval/add/accuracy", 0.125}});
    for (int step = 1; step <= 4; ++step) metric("sft", step, {{"loss", 4.0 / step}, {"kl", 0}, {"odd/metric", step}});
    metric("grpo", 0, {{"eval/add/accuracy", 0.5}});
    for (int step = 1; step <= 3; ++step) {
      metric("grpo", step, {{"reward", 0.25 * step}, {"timing_s/step", 2}, {"timing_s/gen", 1.5}});
      completion("grpo", step, format("prompt {}", step),
                 {{"good one", {{"task", 1}}, 0.5, FinishReason::kStop, ""},
                  {"<script>alert(1)</script>", {{"task", 0}}, -0.5, FinishReason::kLength, ""},
                  {"lost", {{"task", std::nan("")}}, 0, FinishReason::kStop, "reward task: too late"}});
    }
    metric("grpo", 4, {{"reward", 1}, {"eval/add/accuracy", 0.9}});
  }
  std::string error() {
    try {
      read_run(dir_);
    } catch (const Error& failure) {
      return format("{} {}", static_cast<int>(failure.exit_code()), failure.what());
    }
    return "none";
  }

  const std::string dir_ =
      testing::TempDir() + "report_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  int time_ = 0;
};

TEST_F(Report, ShowsEachStageWithItsAccuracyBeforeAndAfter) {
  small_run();
  const std::string html = report_html(read_run(dir_));
  EXPECT_THAT(html, HasSubstr("<td>accuracy, add</td><td class=\"from\">50.0% →</td><td class=\"big up\">90.0%</td>"));
  EXPECT_THAT(html, HasSubstr("<td>loss</td><td class=\"from\">4 →</td><td class=\"big up\">1</td>"));
  EXPECT_THAT(html, HasSubstr("<h2>sft</h2>"));
  EXPECT_THAT(html, HasSubstr("<h2>grpo</h2>"));
  EXPECT_LT(html.find("<h2>sft</h2>"), html.find("<h2>grpo</h2>"));
  EXPECT_THAT(html, HasSubstr("begun <b>2023-11-14 22:13 UTC</b>"));
  EXPECT_THAT(html, HasSubstr("timing_s/gen 75%"));
}

TEST_F(Report, NamesEveryMetricOfTheRun) {
  small_run();
  const std::string html = report_html(read_run(dir_));
  for (const char* name : {"reward", "loss", "odd/metric", "eval/add/accuracy", "timing_s/gen", "Constant: kl = 0"})
    EXPECT_THAT(html, HasSubstr(name));
}

TEST_F(Report, ShowsCompletionsWithTheirVerdictAndEscapesThem) {
  small_run();
  const std::string html = report_html(read_run(dir_));
  EXPECT_THAT(html, HasSubstr("class=\"completion good\"><div class=\"chips\"><span>task "
                              "<b>1</b></span><span>advantage +0.5</span></div><pre>good one</pre>"));
  EXPECT_THAT(html, HasSubstr("class=\"completion bad\""));
  EXPECT_THAT(html, HasSubstr("<span>ended by length</span>"));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));
  EXPECT_THAT(html, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(html, HasSubstr("class=\"completion failed\""));
  EXPECT_THAT(html, HasSubstr("not scored: reward task: too late"));
}

TEST_F(Report, LoadsNothingFromElsewhere) {
  small_run();
  const std::string html = report_html(read_run(dir_));
  for (const char* reference : {"src=", "href=\"h", "href=\"/", "@import", "url(", "fetch(", "http:", "https:"})
    EXPECT_THAT(html, Not(HasSubstr(reference)));
}

TEST_F(Report, TakesCompletionsFromAnEarlyAMiddleAndALateStep) {
  for (int step = 1; step <= 9; ++step) {
    metric("grpo", step, {{"reward", 0.5}});
    for (const char* which : {"a", "b", "c"}) completion("grpo", step, format("{}{}", step, which), {});
  }
  std::vector<std::string> prompts;
  const RunLog run = read_run(dir_);
  for (const CompletionRecord& record : run.stages[0].completions) prompts.push_back(record.prompt);
  EXPECT_THAT(prompts, ElementsAre("1a", "1b", "5a", "5b", "9a", "9b"));
}

TEST_F(Report, ReadsModelAndRewardsFromTheConfiguration) {
  small_run();
  append("config.toml",
         "[run]\nname = \"first steps\"\n[model]\npath = \"models/tiny\"\n[data]\ntask = "
         "\"arithmetic\"\n[algo]\npreset = \"grpo\"\n");
  const RunLog run = read_run(dir_);
  EXPECT_THAT(run.notes, IsEmpty());
  const std::string html = report_html(run);
  EXPECT_THAT(html, HasSubstr("<h1>first steps</h1>"));
  EXPECT_THAT(html, HasSubstr("model <b>models/tiny</b>"));
  EXPECT_THAT(html, HasSubstr("rewards task"));
}

TEST_F(Report, SaysWhatIsMissing) {
  metric("grpo", 1, {{"reward", 0.5}});
  append("metrics.jsonl", "{\"stage\": \"grpo\", \"st");
  const std::string html = report_html(read_run(dir_));
  EXPECT_THAT(html, HasSubstr("The last line of metrics.jsonl is torn"));
  EXPECT_THAT(html, HasSubstr("completions.jsonl is missing"));
  EXPECT_THAT(html, HasSubstr("config.toml is missing"));
  append("config.toml", "[run]\ncolour = \"red\"\n");
  EXPECT_THAT(report_html(read_run(dir_)), HasSubstr("colour = &quot;red&quot;"));
}

TEST_F(Report, AFolderThatIsNoRunIsAnIoErrorWithTheFix) {
  EXPECT_THAT(error(),
              HasSubstr("3 " + dir_ +
                        ": holds no metrics.jsonl, so it is not the directory of a run. Give one such as runs/NAME."));
  std::filesystem::remove_all(dir_);
  EXPECT_THAT(error(), HasSubstr("3 " + dir_ + ": is not a folder"));
}

TEST_F(Report, GarbageIsAFormatErrorThatNamesFileAndLine) {
  metric("grpo", 1, {{"reward", 0.5}});
  append("metrics.jsonl", "what\n");
  EXPECT_THAT(error(), HasSubstr("5 " + dir_ + "/metrics.jsonl: line 2 is not JSON"));
}

TEST_F(Report, StepsThatGoBackAreAFormatError) {
  metric("grpo", 2, {});
  metric("grpo", 1, {});
  EXPECT_THAT(error(), HasSubstr("metrics.jsonl: line 2 goes back from step 2 to step 1 of stage grpo"));
}

TEST_F(Report, GarbageAmongCompletionsIsAFormatErrorThatNamesFileAndLine) {
  metric("grpo", 1, {{"reward", 0.5}});
  completion("grpo", 1, "a", {});
  append("completions.jsonl", "{\"stage\": \"grpo\", \"step\": 2, \"prompt\": \"b\", \"completions\": [1]}\n");
  EXPECT_THAT(error(), HasSubstr("5 " + dir_ + "/completions.jsonl: line 2 has a completion that is not an object"));
}

TEST_F(Report, AnEmptyMetricsFileAsksToWait) {
  append("metrics.jsonl", "");
  EXPECT_THAT(error(), HasSubstr("has no records yet. Wait until the run has finished its first step."));
}

TEST_F(Report, TheLearningCurveRunsThroughAllStages) {
  small_run();
  const Chart chart = learning_curve(read_run(dir_));
  ASSERT_EQ(chart.series.size(), 2u);
  EXPECT_EQ(chart.series[1].name, "add");
  EXPECT_THAT(chart.series[1].x, ElementsAre(0, 5, 9));
  EXPECT_THAT(chart.series[1].y, ElementsAre(0.125, 0.5, 0.9));
  ASSERT_EQ(chart.spans.size(), 2u);
  EXPECT_EQ(chart.x_label, "seconds");
  EXPECT_EQ(chart.spans[0].end, 4);
  EXPECT_EQ(chart.spans[1].begin, 4);
  EXPECT_EQ(chart.spans[1].end, 9);
  write_learning_curve_svg(dir_, dir_ + "/curve.svg");
  EXPECT_THAT(read_file(dir_ + "/curve.svg"), HasSubstr("xmlns=\"http://www.w3.org/2000/svg\""));
}

TEST_F(Report, TheLearningCurveLeavesThePauseBeforeAResumedRunOut) {
  metric("grpo", 1, {{"reward", 0.5}, {"timing_s/step", 4}});
  time_ += 100000;
  metric("grpo", 2, {{"reward", 0.5}, {"timing_s/step", 4}});
  metric("grpo", 3, {{"reward", 0.5}, {"timing_s/step", 4}});
  const Chart chart = learning_curve(read_run(dir_));
  ASSERT_EQ(chart.spans.size(), 1u);
  EXPECT_EQ(chart.spans[0].end, 5);  // 4 accounted for, then 1 on the clock
}

TEST_F(Report, TheLearningCurveOfAHardTaskFillsItsAxis) {
  metric("sft", 0, {{"eval/gsm8k/accuracy", 0.02}});
  metric("sft", 9, {{"eval/gsm8k/accuracy", 0.05}});
  EXPECT_EQ(learning_curve(read_run(dir_)).y_range, std::pair(0.0, 0.1));
  metric("sft", 12, {{"eval/gsm8k/accuracy", 0.45}});
  EXPECT_EQ(learning_curve(read_run(dir_)).y_range, std::pair(0.0, 1.0));
}

TEST_F(Report, ALongRunStaysASmallPage) {
  std::string lines;
  for (int step = 1; step <= 20000; ++step)
    lines +=
        to_json(MetricRecord{"grpo", step, step, 1.0 * step, {{"reward", 0.5 + step * 1e-5}, {"kl", step * 1e-6}}}) +
        "\n";
  append("metrics.jsonl", lines);
  const std::string html = report_html(read_run(dir_));
  EXPECT_LT(html.size(), 100000u);
  EXPECT_THAT(html, HasSubstr("each point is the mean of 50 steps"));
}

TEST_F(Report, ShowsWhatRewardModelsAndCriticsAreJudgedBy) {
  metric("reward_model", 0, {{"eval/add/pair_accuracy", 0.5}, {"eval/add/loss", 0.7}});
  for (int step = 1; step <= 3; ++step)
    metric("reward_model", step, {{"loss", 0.7 / step}, {"rewards/accuracies", 0.3 * step}, {"rewards/margins", step}});
  metric("reward_model", 4, {{"loss", 0.1}, {"eval/add/pair_accuracy", 0.75}, {"eval/add/loss", 0.5}});
  for (int step = 1; step <= 3; ++step)
    metric("ppo", step,
           {{"reward", step},
            {"value_loss", 1.0 / step},
            {"explained_variance", 0.2 * step},
            {"kl", 0.1 * step},
            {"rewards/task/mean", 0.1 * step},
            {"rewards/model/mean", step},
            {"teacher_kl", 2.0 / step},
            {"critic/grad_norm", step},
            {"grad_norm", step}});
  const std::string html = report_html(read_run(dir_));
  EXPECT_THAT(
      html, HasSubstr("<td>pairs told apart, add</td><td class=\"from\">50.0% →</td><td class=\"big up\">75.0%</td>"));
  for (const char* title :
       {"Held-out pairs: the chosen one preferred", "Held-out loss", "Value loss of the critic",
        "Explained variance of the returns", "KL to the reference", "Rewards by function", "Distance to the teacher"})
    EXPECT_THAT(html, HasSubstr(title));
  for (const char* name : {"rewards/model/mean", "rewards/task/mean", "critic/grad_norm", "rewards/margins"})
    EXPECT_THAT(html, HasSubstr(name));
}

}  // namespace
}  // namespace temper
