// Four ranks save together; the power goes after any of their calls; whatever the disk then holds of what was not
// synced, the newest or the previous checkpoint loads, whole. TEMPER_CRASH_SEEDS=N tries N orders of the ranks' calls,
// each with other tears (default 2).
#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "checkpoint/manifest.h"
#include "core/hash.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/simulated_disk.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

constexpr int kSavingRanks = 4;
constexpr int kTearsPerCall = 8;  // random losses tried after each call, beside all and none

uint64_t num_crash_seeds() {
  const char* text = std::getenv("TEMPER_CRASH_SEEDS");
  return text == nullptr ? 2 : std::strtoull(text, nullptr, 10);
}

// What all ranks together save as version `version`: split in rows, one tensor of more than a block on the last rank.
std::vector<TensorEntry> tensors_of_version(int64_t version) {
  return {{"model/rows", example_tensor({9, 31}, at::kFloat, version)},
          {"model/norm", example_tensor({7}, at::kFloat, version)},
          {"optim/large", example_tensor({270000}, at::kFloat, version)},
          {"optim/step", example_tensor({}, at::kLong, version)}};
}

CheckpointState crash_part_of(int rank, int64_t step, int64_t version) {
  CheckpointState state = example_state(step);
  state.header.policy_version = version;
  const auto whole = tensors_of_version(version);
  const at::Tensor rows = whole[0].tensor;
  const int64_t begin = 9 * rank / kSavingRanks, end = 9 * (rank + 1) / kSavingRanks;
  state.tensors = {{whole[0].name, rows.narrow(0, begin, end - begin).contiguous(), rows.sizes().vec(), {begin, 0}}};
  for (size_t t = 1; t < whole.size(); ++t) {
    const bool mine = rank == (whole[t].name == "optim/large" ? kSavingRanks - 1 : 0);
    if (mine)
      state.tensors.push_back(whole[t]);
    else
      state.tensors.push_back({whole[t].name, at::empty({0}, whole[t].tensor.options()), whole[t].tensor.sizes().vec(),
                               std::vector<int64_t>(static_cast<size_t>(whole[t].tensor.dim()))});
  }
  if (rank > 0)
    std::erase_if(state.tensors,
                  [](const auto& entry) { return entry.whole_shape.empty() && entry.tensor.numel() == 0; });
  state.mesh = {1, kSavingRanks, 1};
  return state;
}

void save_on_ranks(FileSystem& files, const std::string& folder, int64_t step, int64_t version) {
  on_thread_ranks(kSavingRanks, {.timeout = std::chrono::seconds(120)}, [&](Communicator& comm) {
    CheckpointStore store(files, folder, 2, &comm);
    store.save(crash_part_of(comm.rank(), step, version));
  });
}

bool writes_a_shard(const DiskCall& call) {
  return base_name(call.path).starts_with("shard_") && call.path.find(".tmp-") != std::string::npos &&
         call.kind != DiskCall::Kind::kUnlink;
}

// The same calls in another order in which the ranks could have made them: between two agreements each writes its
// shard, and nothing ties these calls to each other.
std::vector<DiskCall> in_another_order(const std::vector<DiskCall>& calls, uint64_t seed) {
  const auto first = std::find_if(calls.begin(), calls.end(), writes_a_shard);
  const auto last = std::find_if(calls.rbegin(), calls.rend(), [](const DiskCall& call) {
                      return writes_a_shard(call) && (call.creates || call.kind != DiskCall::Kind::kOpen);
                    }).base();
  std::map<std::string, std::vector<DiskCall>> of_shard;
  for (auto call = first; call != last; ++call) {
    EXPECT_TRUE(writes_a_shard(*call)) << describe(*call) << " among the ranks' writing";
    of_shard[call->path].push_back(*call);
  }
  EXPECT_EQ(of_shard.size(), static_cast<size_t>(kSavingRanks));
  std::vector<DiskCall> ordered(calls.begin(), first);
  SplitMix64 random(seed);
  std::map<std::string, size_t> done;
  while (!of_shard.empty()) {
    auto next = of_shard.begin();
    std::advance(next, random.in_range(0, static_cast<int64_t>(of_shard.size()) - 1));
    ordered.push_back(next->second[done[next->first]++]);
    if (done[next->first] == next->second.size()) of_shard.erase(next);
  }
  ordered.insert(ordered.end(), last, calls.end());
  return ordered;
}

// Index of the call after which the save may not be lost: the sync of the folder that `name` appeared in.
size_t durable_after(const std::vector<DiskCall>& calls, const std::string& name) {
  size_t at = 0;
  while (at < calls.size() && calls[at].other != name) ++at;
  while (at < calls.size() && !(calls[at].kind == DiskCall::Kind::kSync && calls[at].path.empty())) ++at;
  EXPECT_LT(at, calls.size());
  return at;
}

std::string hash_of(const SimulatedDisk::Contents& contents) {
  Xxh3Stream hash;
  for (const auto& [path, bytes] : contents) {
    const std::string head = format("{} {};", path, bytes ? static_cast<int64_t>(bytes->size()) : -1);
    hash.update(head.data(), head.size());
    if (bytes) hash.update(bytes->data(), bytes->size());
  }
  return hash.digest_hex();
}

void lay_out(const SimulatedDisk::Contents& contents, const std::string& folder) {
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (const auto& [path, bytes] : contents) {  // in order: a folder comes before what lies in it
    if (bytes)
      std::ofstream(folder + "/" + path, std::ios::binary)
          .write(bytes->data(), static_cast<std::streamsize>(bytes->size()));
    else
      std::filesystem::create_directory(folder + "/" + path);
  }
}

// A save of step `step`, version 3, over steps 1 and 2, which hold versions 1 and 2.
class CrashPoints : public testing::Test {
 protected:
  CrashPoints() {
    set_log_level(LogLevel::kOff);
    std::filesystem::create_directory(before_);
    QuickFileSystem files;
    for (int64_t step : {1, 2}) save_on_ranks(files, before_, step, step);
  }
  ~CrashPoints() override { set_log_level(LogLevel::kInfo); }

  std::vector<DiskCall> trace_of_save(int64_t step) {
    const std::string folder = scratch_.path() + "/trace";
    std::filesystem::remove_all(folder);
    std::filesystem::copy(before_, folder, std::filesystem::copy_options::recursive);
    TraceFileSystem files(folder);
    save_on_ranks(files, folder, step, 3);
    return files.calls();
  }

  // What a start after the power cut finds: the version that it loads. Every other folder with a checkpoint's name must
  // be whole too.
  int64_t loaded_version(const SimulatedDisk::Contents& contents) {
    const std::string folder = scratch_.path() + "/after";
    lay_out(contents, folder);
    QuickFileSystem files;
    CheckpointStore store(files, folder, 2);
    store.remove_stale();
    for (const CheckpointInfo& info : store.list(CheckDepth::kEveryByte)) EXPECT_TRUE(info.good) << info.why_not;
    const auto places = blank_copy(versions_[1]);
    const auto loaded = store.load_newest([&](const CheckpointHeader&) { return places; });
    if (!loaded) return -1;
    const int64_t version = loaded->header.policy_version;
    CheckpointHeader expected = example_state(loaded->header.step).header;
    expected.policy_version = version;
    expect_same_header(loaded->header, expected);
    const auto& whole = versions_.at(static_cast<size_t>(version));
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_TRUE(same_bits(places[i].tensor, whole[i].tensor)) << whole[i].name << " is not version " << version;
    return version;
  }

  struct Seen {
    int64_t states = 0, previous = 0, newest = 0;
    int64_t lost = 0;  // the save had returned, yet another checkpoint loads
  };

  // Cuts the power after each call. What is on the disk and has been looked at is not looked at again.
  Seen cut_everywhere(const std::vector<DiskCall>& calls, size_t durable, uint64_t seed) {
    Seen seen;
    SimulatedDisk disk(before_);
    SplitMix64 random(seed);
    std::set<std::string> known;
    for (size_t at = 0; at < calls.size(); ++at) {
      disk.apply(calls[at]);
      for (int tear = -2; tear < kTearsPerCall; ++tear) {
        const Loss loss = tear == -2 ? Loss::kAll : tear == -1 ? Loss::kNothing : Loss::kTorn;
        const auto contents = disk.after_power_cut(loss, random.next());
        if (!known.insert(hash_of(contents) + (at >= durable ? "d" : "")).second) continue;
        const int64_t version = loaded_version(contents);
        EXPECT_TRUE(version == 2 || version == 3) << "version " << version << " loads";
        if (testing::Test::HasFailure()) {
          ADD_FAILURE() << "the power went after call " << at << ", " << describe(calls[at]) << "; seed " << seed;
          return seen;
        }
        ++seen.states;
        ++(version == 3 ? seen.newest : seen.previous);
        if (at >= durable && version != 3) ++seen.lost;
      }
    }
    return seen;
  }

  void expect_safe(int64_t step) {
    const auto calls = trace_of_save(step);
    for (uint64_t seed = 0; seed < num_crash_seeds(); ++seed) {
      const auto ordered = seed == 0 ? calls : in_another_order(calls, seed);
      const Seen seen = cut_everywhere(ordered, durable_after(ordered, step_name(step)), seed);
      EXPECT_EQ(seen.lost, 0);
      EXPECT_GT(seen.previous, 60);
      EXPECT_GT(seen.newest, 20);
      if (HasFailure()) FAIL() << "seed " << seed;
      RecordProperty(format("states_of_seed_{}", seed), std::to_string(seen.states));
    }
  }

  TemporaryFolder scratch_;
  std::vector<std::vector<TensorEntry>> versions_ = {
      {}, tensors_of_version(1), tensors_of_version(2), tensors_of_version(3)};
  std::string before_ = scratch_.path() + "/before";
};

TEST_F(CrashPoints, OfANewStepLeaveItOrThePreviousOne) { expect_safe(3); }

TEST_F(CrashPoints, OfAStepThatIsSavedAgainLeaveTheOldOrTheNewOne) { expect_safe(2); }

// What this file's other tests are worth: without any one of the commit's syncs they would fail.
TEST_F(CrashPoints, NoSyncOfTheCommitCouldBeLeftOut) {
  const auto calls = trace_of_save(3);
  const size_t durable = durable_after(calls, step_name(3));
  std::set<std::string> left_out;
  for (size_t at = 0; at < durable; ++at) {
    if (calls[at].kind != DiskCall::Kind::kSync || base_name(calls[at].path) == kCommittedName) continue;
    left_out.insert(base_name(calls[at].path));
    SimulatedDisk disk(before_);
    for (size_t other = 0; other <= durable; ++other)
      if (other != at) disk.apply(calls[other]);
    const std::string folder = scratch_.path() + "/after";
    lay_out(disk.after_power_cut(Loss::kAll, 0), folder);
    QuickFileSystem files;
    const auto infos = CheckpointStore(files, folder, 2).list(CheckDepth::kEveryByte);
    EXPECT_FALSE(!infos.empty() && infos.front().step == 3 && infos.front().good) << "without " << describe(calls[at]);
  }
  EXPECT_EQ(left_out.size(), static_cast<size_t>(kSavingRanks) + 3);  // shards, global.h5, manifest.json, the folder
}

}  // namespace
}  // namespace temper
