// temper bench hub: how many groups a second one hub takes in from simulated workers over real sockets, and how long a
// worker waits for its next lease. Hub and train loop are this process, pinned to one core where asked; the workers are
// another, on the other cores then. The processor time of both is told apart: where cores are few, the workers may be
// what is slow.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <unordered_set>

#include "apps/bench.h"
#include "apps/command_line.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/process.h"
#include "rollout/simulated_worker.h"
#include "trainer/hub_service.h"
#include "trainer/step_metrics.h"

namespace temper {
namespace {

struct Load {
  int64_t num_workers = 1000;
  int32_t num_leases = 4;
  int num_completions = 8;
  int64_t num_tokens = 128;
  double pause_s = 0;
  double seconds = 10;
  int64_t groups_per_step = 10'000;
  double temperature = 1;
  bool pinned = false;
};

constexpr double kWarmUpS = 2;

// Numbers through a pipe.
class Pipe {
 public:
  Pipe() {
    if (pipe(ends_) != 0) throw IoError("no pipe for the workers' process.");
  }
  template <class T>
  void write_all(const std::vector<T>& values) const {
    const auto count = static_cast<int64_t>(values.size());
    put(&count, sizeof count);
    put(values.data(), values.size() * sizeof(T));
  }
  template <class T>
  std::vector<T> read_all() const {
    int64_t count = 0;
    get(&count, sizeof count);
    std::vector<T> values(static_cast<size_t>(count));
    get(values.data(), values.size() * sizeof(T));
    return values;
  }

 private:
  void put(const void* bytes, size_t size) const {
    for (const char* at = static_cast<const char*>(bytes); size > 0;) {
      const ssize_t count = ::write(ends_[1], at, size);
      if (count <= 0) throw IoError("the workers' process is gone.");
      at += count;
      size -= static_cast<size_t>(count);
    }
  }
  void get(void* bytes, size_t size) const {
    for (char* at = static_cast<char*>(bytes); size > 0;) {
      const ssize_t count = ::read(ends_[0], at, size);
      if (count <= 0) throw IoError("the workers' process is gone.");
      at += count;
      size -= static_cast<size_t>(count);
    }
  }
  int ends_[2] = {-1, -1};
};

// Core 0 alone, or all others.
void pin(bool to_first_core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  const long last = to_first_core ? 0 : ::sysconf(_SC_NPROCESSORS_ONLN) - 1;
  for (long core = to_first_core ? 0 : 1; core <= last; ++core) CPU_SET(core, &cores);
  if (CPU_COUNT(&cores) > 0 && sched_setaffinity(0, sizeof cores, &cores) != 0)
    throw IoError("this process cannot be bound to cores 0 to {}.", last);
}

// The other process: all workers, until the hub's ends the measurement.
void run_workers(const Load& load, const Pipe& from_hub, const Pipe& to_hub) {
  const std::vector<char> hub = from_hub.read_all<char>(), key = from_hub.read_all<char>();
  std::optional<ClientKeys> keys;
  if (!key.empty()) keys = read_client_keys(std::string(key.begin() + 40, key.end()), {key.begin(), key.begin() + 40});
  raise_file_limit();
  if (load.pinned) pin(/*to_first_core=*/false);
  std::vector<SimulatedWorkerOptions> options(static_cast<size_t>(load.num_workers));
  for (size_t i = 0; i < options.size(); ++i) {
    options[i] = {.worker = {.name = format("w{}", i), .max_leases = load.num_leases, .seed = i},
                  .hub = {hub.begin(), hub.end()},
                  .keys = keys,
                  .channel = {},
                  .num_tokens = load.num_tokens,
                  .pause_s = load.pause_s};
    options[i].channel.allow_plain_text = !keys;
  }
  SimulatedWorkers workers(std::move(options));
  from_hub.read_all<char>();  // measure from here
  workers.take_lease_ms();
  const double before_s = process_cpu_s();
  from_hub.read_all<char>();  // to here
  to_hub.write_all(std::vector<double>{process_cpu_s() - before_s});
  to_hub.write_all(workers.take_lease_ms());
}

// A trainer that does nothing but ask for prompts and take groups, and has the log trimmed as checkpoints do.
struct Trainer {
  HubService& hub;
  Load load;
  int64_t next_serial = 0, version = 0;
  int64_t taken = 0;
  std::unordered_set<int64_t> outstanding = {};

  void run(double seconds) {
    const int64_t ahead = std::max<int64_t>(4000, 4 * load.num_leases * load.num_workers), take = 1000;
    const Stopwatch watch;
    while (watch.seconds() < seconds) {
      std::vector<Prompt> prompts;
      for (; next_serial < taken + ahead; ++next_serial) {
        prompts.emplace_back().serial = next_serial;
        prompts.back().token_ids.assign(64, 1);
        outstanding.insert(next_serial);
      }
      hub.request(std::move(prompts), load.num_completions, {.temperature = load.temperature}, RolloutPurpose::kTrain);
      for (int64_t i = 0; i < take && watch.seconds() < seconds; ++i) {
        const auto group = hub.next_group(std::chrono::steady_clock::now() + std::chrono::milliseconds(100));
        if (!group) continue;
        outstanding.erase(group->prompt.serial);
        if (++taken % load.groups_per_step != 0) continue;
        hub.publish(++version);
        hub.trim_log([this](int64_t serial) { return outstanding.contains(serial); });
      }
    }
  }
};

// What a group weighs on the wire, before the cipher.
size_t group_bytes(const Load& load) {
  const auto length = static_cast<size_t>(load.num_tokens);
  Completion one;
  one.token_ids.assign(length, 1);
  one.logprobs.assign(length, -1);
  one.behavior_logprobs.assign(length, load.temperature == 1 ? -1 : -2);
  one.policy_versions.assign(length, 1);
  one.mask.assign(length, 1);
  one.rewards = {0.5};
  const RolloutMessage message{
      1, GroupResult{1, 1, std::vector<Completion>(static_cast<size_t>(load.num_completions), one)}};
  return encode(message).size() + kFrameHeaderBytes;
}

int64_t wait_for_workers(HubService& hub, int64_t wanted) {
  for (const Stopwatch watch; hub.num_workers() < wanted && watch.seconds() < 120;)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return hub.num_workers();
}

}  // namespace

int run_bench_hub(int argc, char** argv) {
  CommandLine line("bench hub", "Measures a hub with simulated workers over loopback sockets.", "[--workers N]");
  line.add_option("workers", "N", "simulated workers", "1000");
  line.add_option("leases", "L", "of each worker at once; 4: as many groups of 8 as a worker of 32 sequences has", "4");
  line.add_option("num-generations", "G", "completions a group", "8");
  line.add_option("tokens", "T", "of each completion", "128");
  line.add_option("pause-ms", "MS", "between a lease and its group, on average; 0: as fast as the hub takes them", "0");
  line.add_option("seconds", "S", "of measuring", "10");
  line.add_option("groups-per-step", "N", "groups between two versions, of which all workers are told", "10000");
  line.add_option("temperature", "T", "of sampling: at 1 each token has one log-probability, else two", "1");
  line.add_flag("plain-text", "without CURVE");
  line.add_flag("pin", "hub and trainer on core 0 alone, the workers on the others");
  if (!line.parse(argc, argv)) return 0;
  const Load load{.num_workers = line.integer("workers", 1, 16'000),
                  .num_leases = static_cast<int32_t>(line.integer("leases", 1, 1024)),
                  .num_completions = static_cast<int>(line.integer("num-generations", 1, 1024)),
                  .num_tokens = line.integer("tokens", 1, 1 << 20),
                  .pause_s = line.number("pause-ms") / 1000,
                  .seconds = line.number("seconds"),
                  .groups_per_step = line.integer("groups-per-step", 1, 1'000'000'000),
                  .temperature = line.number("temperature"),
                  .pinned = line.flag("pin")};
  const Pipe to_workers, from_workers;
  const pid_t parent = getpid(), child = fork();  // before there are threads
  if (child < 0) throw IoError("the workers' process cannot be started.");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    try {
      run_workers(load, to_workers, from_workers);
    } catch (const std::exception& error) {
      _exit(1);
    }
    _exit(0);
  }
  if (load.pinned) pin(/*to_first_core=*/true);
  const std::string folder =
      (std::filesystem::temp_directory_path() / format("temper-bench-hub-{}", static_cast<int64_t>(parent))).string();
  std::filesystem::create_directories(folder);
  HubServiceOptions options;
  options.address = "tcp://127.0.0.1:*";
  options.channel.allow_plain_text = line.flag("plain-text");
  options.hub.num_rewards = 1;
  options.hub.max_workers = load.num_workers;
  options.hub.staleness = {.max_staleness = 1'000'000, .groups_per_step = load.groups_per_step};
  options.log_path = folder + "/groups.log";
  std::string key;  // the hub's public key and the folder of the workers'
  if (!line.flag("plain-text")) {
    make_job_keys(folder + "/keys");
    options.keys = read_server_keys(folder + "/keys");
    key = options.keys->own.public_key + folder + "/keys";
  }
  HubService hub(std::move(options), 0);
  to_workers.write_all(std::vector<char>(hub.address().begin(), hub.address().end()));
  to_workers.write_all(std::vector<char>(key.begin(), key.end()));
  const int64_t present = wait_for_workers(hub, load.num_workers);
  Trainer trainer{hub, load};
  trainer.run(kWarmUpS);
  const int64_t before = trainer.taken;
  to_workers.write_all(std::vector<char>());
  const Stopwatch watch;
  const double before_s = process_cpu_s();
  trainer.run(load.seconds);
  const double cpu_s = process_cpu_s() - before_s, passed_s = watch.seconds();
  const auto groups = static_cast<double>(trainer.taken - before);
  to_workers.write_all(std::vector<char>());
  const double workers_cpu_s = from_workers.read_all<double>().front();
  std::vector<double> lease_ms;
  for (const float ms : from_workers.read_all<float>()) lease_ms.push_back(ms);
  const BenchReport report(argc, argv, at::kCPU);
  report.print({{"workers", static_cast<double>(present)},
                {"groups_per_s", groups / passed_s},
                {"group_bytes", static_cast<double>(group_bytes(load))},
                {"hub_cores", cpu_s / passed_s},
                {"hub_cpu_us_per_group", cpu_s / groups * 1e6},
                {"workers_cores", workers_cpu_s / passed_s},
                {"workers_cpu_us_per_group", workers_cpu_s / groups * 1e6},
                {"lease_ms_p50", quantile(lease_ms, 0.5)},
                {"lease_ms_p99", quantile(lease_ms, 0.99)},
                {"leases", static_cast<double>(lease_ms.size())},
                {"rss_mb", peak_memory_gb() * 1024},
                {"ciphered", line.flag("plain-text") ? 0.0 : 1.0}});
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return 0;
}

}  // namespace temper
