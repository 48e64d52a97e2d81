// temper bench as a user runs it, on the tiny preset: what it prints, never how fast it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::vector<json> lines_of(const RunResult& result) {
  std::vector<json> lines;
  std::istringstream text(result.out);
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

TEST(BenchRollout, PrintsOneLineARepeatAndTheMedianLast) {
  const RunResult result = run_temper({"bench", "rollout", "--preset=tiny", "--seconds=0", "--num-prompts=2",
                                       "--num-generations=3", "--prompt-tokens=20", "--max-new-tokens=5"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> lines = lines_of(result);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines.back()["repeats"], 1);
  for (const json& line : lines) {
    EXPECT_EQ(line["bench"], "rollout");
    EXPECT_THAT(line["command"], HasSubstr("temper bench rollout --preset=tiny"));
    EXPECT_GT(line["threads"], 0);
    for (const char* field : {"tokens_per_s", "prefill_tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50",
                              "tpot_ms_p99", "kv_cache_mb", "peak_rss_mb", "gemm_limit_share"})
      EXPECT_GT(line[field], 0) << field;
    EXPECT_EQ(line["occupancy"], 1);  // six sequences of equal length
    EXPECT_LE(line["goodput"], 1);
  }
}

TEST(BenchRollout, ColdPrintsTheAgeOfTheProcessAtItsFirstToken) {
  const RunResult result = run_temper({"bench", "rollout", "--preset=tiny", "--cold"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> lines = lines_of(result);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_GT(lines[0]["first_token_s"], 0);
}

TEST(BenchWeights, ComparesWholeAndDeltaWithTheChannelAlone) {
  const RunResult result =
      run_temper({"bench", "weights", "--preset=tiny", "--seconds=0", "--ranks=2", "--learning-rate=1e-6"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> lines = lines_of(result);
  ASSERT_EQ(lines.size(), 2u);
  for (const char* field : {"gb_s", "limit_gb_s", "limit_share", "delta_share", "delta_gb_s", "weight_mb"})
    EXPECT_GT(lines.back()[field], 0) << field;
  EXPECT_EQ(lines.back()["ranks"], 2);
  EXPECT_LT(lines.back()["delta_share"], 0.5);
}

TEST(BenchCheckpoint, PrintsStallsAndBandwidthsAndLeavesNothing) {
  const std::string folder = testing::TempDir() + "bench-checkpoint";
  const RunResult result = run_temper({"bench", "checkpoint", "--gb=0.01", "--saves=2", "--dir=" + folder});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> lines = lines_of(result);
  ASSERT_EQ(lines.size(), 4u);
  for (const char* field : {"gb", "first_stall_ms", "stall_ms_p50", "stall_ms_p99", "memcpy_ms", "save_gb_s",
                            "raw_write_gb_s", "load_gb_s", "raw_read_gb_s"})
    EXPECT_GT(lines.back()[field], 0) << field;
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove(folder);
}

TEST(BenchRollout, RefusesWhatItCannotMeasure) {
  EXPECT_THAT(run_temper({"bench", "rolout"}).err, AllOf(HasSubstr("rolout"), HasSubstr("'rollout'")));
  EXPECT_THAT(run_temper({"bench", "rollout"}).err, HasSubstr("--model DIR or --preset"));
  const RunResult result = run_temper({"bench", "rollout", "--preset=huge"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("--preset=huge"), HasSubstr("135m")));
}

}  // namespace
}  // namespace temper
