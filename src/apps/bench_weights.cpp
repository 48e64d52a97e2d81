// temper bench weights: how fast a version of the weights comes from the trainer's ranks to a worker over loopback
// sockets with keys, whole and as deltas, beside what the same channels carry of random bytes.
#include <ATen/ATen.h>

#include <thread>

#include "apps/bench.h"
#include "apps/bench_model.h"
#include "comm/channel.h"
#include "comm/weight_client.h"
#include "comm/weight_server.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/rng.h"
#include "model/initialize.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kEpoch = 1;
constexpr const char* kAddress = "tcp://127.0.0.1:*";
constexpr size_t kChunkBytes = 1 << 20;
constexpr uint16_t kRandomBytes = kFirstApplicationType;

Clock::time_point in_a_minute() { return Clock::now() + std::chrono::minutes(1); }

struct JobKeys {
  KeyPair trainer = make_key_pair(), worker = make_key_pair();
  ServerKeys server() const { return {trainer, {worker.public_key}}; }
  ClientKeys client() const { return {worker, trainer.public_key}; }
};

// One version: the model in bf16, and who of the ranks has what of it.
class Version {
 public:
  Version(const std::vector<ParameterSpec>& specs, const at::Tensor& masters)
      : specs_(specs), bf16_(masters.to(at::kBFloat16)) {}

  std::vector<WeightPart> parts(int64_t rank, int64_t num_ranks) const {
    std::vector<WeightPart> parts;
    for (const ParameterSpec& spec : specs_) {
      const int64_t elements = spec.num_elements();
      const int64_t begin = elements * rank / num_ranks, end = elements * (rank + 1) / num_ranks;
      const char* bytes = static_cast<const char*>(bf16_.const_data_ptr()) + 2 * (spec.offset + begin);
      parts.push_back(
          {spec.name, WeightDtype::kBf16, spec.shape, begin, end, {bytes, static_cast<size_t>(2 * (end - begin))}});
    }
    return parts;
  }
  int64_t size_bytes() const {
    int64_t bytes = 0;
    for (const ParameterSpec& spec : specs_) bytes += 2 * spec.num_elements();
    return bytes;
  }

 private:
  const std::vector<ParameterSpec>& specs_;
  at::Tensor bf16_;
};

std::vector<uint64_t> random_numbers(int64_t size_bytes) {
  std::vector<uint64_t> numbers((static_cast<size_t>(size_bytes) + 2 * kChunkBytes) / sizeof(uint64_t));
  SplitMix64 random(1);
  for (uint64_t& number : numbers) number = random.next();
  return numbers;
}

// The limit: seconds that the channels of all ranks need for as many random bytes, in messages of a chunk's size.
double time_random_bytes(const JobKeys& keys, int64_t num_ranks, int64_t size_bytes,
                         const std::vector<uint64_t>& random) {
  const int64_t num_messages = (size_bytes / num_ranks + kChunkBytes - 1) / kChunkBytes;
  const auto message = [&](int64_t index) {
    const auto begin = static_cast<size_t>(index) * kChunkBytes % static_cast<size_t>(size_bytes);
    return std::string_view(reinterpret_cast<const char*>(random.data()) + begin, kChunkBytes);
  };
  ChannelSettings settings;
  settings.max_payload_bytes = 8 << 20;
  settings.window_bytes = 32 << 20;
  std::vector<std::unique_ptr<ChannelServer>> servers;
  std::vector<std::unique_ptr<ChannelClient>> clients;
  std::vector<PeerId> peers;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    servers.push_back(std::make_unique<ChannelServer>(kAddress, keys.server(), settings));
    clients.push_back(std::make_unique<ChannelClient>(servers.back()->address(), keys.client(), settings));
    std::thread opener([&] { clients.back()->receive(in_a_minute()); });
    const auto opened = servers.back()->receive(in_a_minute());
    opener.join();
    if (!opened || !clients.back()->is_open()) throw CommError("{}: no connection in a minute.", kAddress);
    peers.push_back(opened->peer);
  }
  std::vector<std::thread> threads;
  const Stopwatch watch;
  for (size_t rank = 0; rank < servers.size(); ++rank) {
    threads.emplace_back([&, rank] {
      for (int64_t sent = 0; sent < num_messages;)
        if (servers[rank]->send(peers[rank], kRandomBytes, message(static_cast<int64_t>(rank) * num_messages + sent)) ==
            SendResult::kSent)
          ++sent;
        else
          servers[rank]->receive(Clock::now() + std::chrono::milliseconds(50));
    });
    threads.emplace_back([&, rank] {
      for (int64_t taken = 0; taken < num_messages; ++taken) clients[rank]->receive(in_a_minute());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return watch.seconds();
}

// The trainer's ranks, and two workers: one that takes every version whole, one that takes differences.
class WeightBench {
 public:
  WeightBench(int64_t num_ranks, const Version& from, const Version& to)
      : versions_{&from, &to}, random_(random_numbers(from.size_bytes())) {
    std::vector<std::string> endpoints;
    for (int64_t rank = 0; rank < num_ranks; ++rank) {
      servers_.push_back(std::make_unique<WeightServer>(kAddress, keys_.server()));
      endpoints.push_back(servers_.back()->address());
    }
    WeightClientOptions whole;
    whole.deltas = false;
    whole_ = std::make_unique<WeightClient>(endpoints, keys_.client(), whole);
    by_delta_ = std::make_unique<WeightClient>(endpoints, keys_.client());
    publish();
    whole_->fetch(kEpoch, version_, in_a_minute());
    by_delta_->fetch(kEpoch, version_, in_a_minute());
  }

  struct Round {
    double publish_s = 0, whole_s = 0, delta_s = 0, limit_s = 0, encode_s = 0, apply_s = 0, delta_bytes = 0;
  };
  Round measure() {
    Round round;
    round.limit_s =
        time_random_bytes(keys_, static_cast<int64_t>(servers_.size()), versions_[0]->size_bytes(), random_);
    Stopwatch watch;
    publish();
    round.publish_s = watch.restart();
    whole_->fetch(kEpoch, version_, in_a_minute());
    round.whole_s = watch.restart();
    const double encode_s = encoded_s(), apply_s = by_delta_->counters().apply_s;
    const int64_t wire_bytes = by_delta_->counters().wire_bytes;
    watch.restart();
    by_delta_->fetch(kEpoch, version_, in_a_minute());
    round.delta_s = watch.seconds();
    round.encode_s = encoded_s() - encode_s;
    round.apply_s = by_delta_->counters().apply_s - apply_s;
    round.delta_bytes = static_cast<double>(by_delta_->counters().wire_bytes - wire_bytes);
    check();
    return round;
  }

 private:
  void publish() {
    const auto num_ranks = static_cast<int64_t>(servers_.size());
    const Version& next = *versions_[static_cast<size_t>(++version_ % 2)];
    for (int64_t rank = 0; rank < num_ranks; ++rank)
      servers_[static_cast<size_t>(rank)]->publish(kEpoch, version_, next.parts(rank, num_ranks));
  }
  double encoded_s() const {
    double seconds = 0;
    for (const auto& server : servers_) seconds += server->counters().encode_s;
    return seconds;
  }
  void check() const {
    const Version& sent = *versions_[static_cast<size_t>(version_ % 2)];
    for (const WeightPart& part : sent.parts(0, 1))
      if (by_delta_->current().tensors.at(part.name).bytes != part.bytes ||
          whole_->current().tensors.at(part.name).bytes != part.bytes)
        throw CommError("bench weights: {} has not come as it was published.", part.name);
  }

  JobKeys keys_;
  const Version* versions_[2];
  const std::vector<uint64_t> random_;
  PolicyVersion version_ = -1;
  std::vector<std::unique_ptr<WeightServer>> servers_;
  std::unique_ptr<WeightClient> whole_, by_delta_;
};

// The masters after a step of `learning_rate`: each moves by as much as Adam's first step moves it, in either
// direction. Before it they lie anywhere between the bf16 values (8 bits of mantissa), as in the course of a training.
void make_step(at::Tensor before, at::Tensor after, double learning_rate) {
  at::manual_seed(1);
  const at::Tensor spacing = at::ldexp(before.ne(0), std::get<1>(at::frexp(before)) - 8);
  before.addcmul_(at::rand_like(before).sub_(0.5), spacing.to(at::kFloat));
  at::rand_out(after, before.sizes());
  after.sub_(0.5).sign_().mul_(learning_rate).add_(before);
}

double median(const std::vector<WeightBench::Round>& rounds, double WeightBench::Round::*member) {
  std::vector<double> values;
  for (const auto& round : rounds) values.push_back(round.*member);
  return quantile(std::move(values), 0.5);
}

BenchFields summary(const std::vector<WeightBench::Round>& rounds, double size_bytes) {
  using Round = WeightBench::Round;
  const double whole_s = median(rounds, &Round::whole_s), limit_s = median(rounds, &Round::limit_s);
  return {{"gb_s", size_bytes / whole_s / 1e9},
          {"limit_gb_s", size_bytes / limit_s / 1e9},
          {"limit_share", limit_s / whole_s},
          {"delta_share", median(rounds, &Round::delta_bytes) / size_bytes},
          {"delta_gb_s", size_bytes / median(rounds, &Round::delta_s) / 1e9},
          {"publish_s", median(rounds, &Round::publish_s)},
          {"whole_s", whole_s},
          {"delta_s", median(rounds, &Round::delta_s)},
          {"encode_s", median(rounds, &Round::encode_s)},
          {"apply_s", median(rounds, &Round::apply_s)},
          {"weight_mb", size_bytes / 1e6}};
}

}  // namespace

int run_bench_weights(int argc, char** argv) {
  CommandLine line("bench weights", "Measures weight updates from trainer ranks to a worker.",
                   "--model DIR [--to DIR]");
  declare_bench_source(line);
  line.add_option("to", "DIR", "the version after --model; without it one step is made up, see --learning-rate");
  line.add_option("learning-rate", "LR", "of the step that is made up: every weight moves by so much", "1e-6");
  line.add_option("ranks", "N", "trainer ranks", "1");
  line.add_option("seconds", "S", "of measuring, at least", "5");
  if (!line.parse(argc, argv)) return 0;
  const int64_t num_ranks = line.integer("ranks", 1, 64);
  const double seconds = line.number("seconds"), learning_rate = line.number("learning-rate");
  const LoadedModel model = load(open_bench_masters(line));
  at::Tensor before = model.parameters.flat(), after;
  if (line.given("to")) {
    const LoadedModel next = load_model(line.text("to"));
    if (next.parameters.flat().sizes() != before.sizes())
      throw ConfigError("--to={}: is another model than --model={}.", line.text("to"), line.text("model"));
    after = next.parameters.flat();
  } else {
    after = at::empty_like(before);
    make_step(before, after, learning_rate);
  }
  const Version from(model.parameters.specs(), before), to(model.parameters.specs(), after);
  const BenchReport report(argc, argv, at::kCPU);
  const auto size_bytes = static_cast<double>(from.size_bytes());
  WeightBench bench(num_ranks, from, to);
  std::vector<WeightBench::Round> rounds;
  for (const Stopwatch watch; rounds.empty() || watch.seconds() < seconds;) {
    rounds.push_back(bench.measure());
    report.print(summary({rounds.back()}, size_bytes));
  }
  BenchFields fields = summary(rounds, size_bytes);
  fields.emplace_back("ranks", static_cast<double>(num_ranks));
  fields.emplace_back("repeats", static_cast<double>(rounds.size()));
  report.print(fields);
  return 0;
}

}  // namespace temper
