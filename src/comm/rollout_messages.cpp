#include "comm/rollout_messages.h"

#include <algorithm>
#include <cstring>

#include "comm/wire_format.h"
#include "core/error.h"
#include "core/hash.h"

namespace temper {
namespace {

constexpr uint32_t kMessageMagic = 0x52504D54;  // "TMPR"
constexpr size_t kHeaderBytes = 32;
constexpr size_t kBodyBytesAt = 16;
constexpr size_t kChecksumAt = 24;
constexpr size_t kMaxWorkerNameBytes = 1024;  // of a worker's name and identities

bool read_bool(WireReader& reader) {
  const auto value = reader.number<uint8_t>();
  if (value > 1) throw FormatError("a message has {} for yes or no.", int{value});
  return value == 1;
}

int64_t read_at_least(WireReader& reader, int64_t lowest, const char* what) {
  const auto value = reader.number<int64_t>();
  if (value < lowest) throw FormatError("a message has {} for {}.", value, what);
  return value;
}

std::string read_name(WireReader& reader) {
  std::string name = reader.text();
  if (name.size() > kMaxWorkerNameBytes) throw FormatError("a message has a name of {} bytes.", name.size());
  return name;
}

void write_texts(const std::vector<std::string>& texts, WireWriter& writer) {
  writer.number(static_cast<int64_t>(texts.size()));
  for (const std::string& text : texts) writer.text(text);
}

std::vector<std::string> read_texts(WireReader& reader) {
  std::vector<std::string> texts(static_cast<size_t>(reader.length(sizeof(int64_t))));
  for (std::string& text : texts) text = reader.text();
  return texts;
}

void write_sampling(const SamplingParams& sampling, WireWriter& writer) {
  writer.number(sampling.temperature);
  writer.number(sampling.top_k);
  writer.number(sampling.top_p);
  writer.number(sampling.min_p);
  writer.number(sampling.max_new_tokens);
  write_texts(sampling.stop, writer);
  writer.number(static_cast<uint8_t>(sampling.ignore_eos));
  writer.number(sampling.seed);
}

SamplingParams read_sampling(WireReader& reader) {
  SamplingParams sampling;
  sampling.temperature = reader.number<double>();
  sampling.top_k = reader.number<int32_t>();
  sampling.top_p = reader.number<double>();
  sampling.min_p = reader.number<double>();
  sampling.max_new_tokens = reader.number<int32_t>();
  sampling.stop = read_texts(reader);
  sampling.ignore_eos = read_bool(reader);
  sampling.seed = reader.number<uint64_t>();
  return sampling;
}

struct BodyWriter {
  WireWriter& writer;

  void operator()(const Hello& hello) {
    for (const std::string* text : {&hello.name, &hello.build, &hello.model, &hello.config}) writer.text(*text);
  }
  void operator()(const Heartbeat& heartbeat) {
    writer.number(heartbeat.version);
    writer.number(heartbeat.credits);
    writer.array(heartbeat.leases);
  }
  void operator()(const GroupResult& result) {
    writer.number(result.lease);
    writer.number(result.serial);
    result.completions.write(writer);
  }
  void operator()(const HandBack& back) {
    writer.number(back.lease);
    write_completions(back.completions, writer);
  }
  void operator()(const Welcome& welcome) {
    writer.number(welcome.heartbeat_ms);
    writer.number(welcome.version);
    write_texts(welcome.weights_endpoints, writer);
  }
  void operator()(const Refusal& refusal) {
    writer.number(static_cast<uint8_t>(refusal.reason));
    writer.text(refusal.text);
  }
  void operator()(const Lease& lease) {
    writer.number(lease.id);
    writer.number(lease.attempt);
    writer.number(lease.oldest_version);
    writer.number(static_cast<uint8_t>(lease.exact));
    writer.number(lease.timeout_ms);
    writer.number(static_cast<uint8_t>(lease.purpose));
    writer.number(lease.num_completions);
    write_sampling(lease.sampling, writer);
    write_prompt(lease.prompt, writer);
    write_completions(lease.partials, writer);
  }
  void operator()(const CancelLease& cancel) { writer.number(cancel.lease); }
  void operator()(const Ack& ack) {
    writer.number(ack.lease);
    writer.number(static_cast<uint8_t>(ack.verdict));
  }
  void operator()(const WeightsAvailable& available) { writer.number(available.version); }
  void operator()(const Goodbye&) {}
};

void read_body(WireReader& reader, Hello& hello) {
  for (std::string* text : {&hello.name, &hello.build, &hello.model, &hello.config}) *text = read_name(reader);
}

void read_body(WireReader& reader, Heartbeat& heartbeat) {
  heartbeat.version = read_at_least(reader, -1, "a policy version");
  heartbeat.credits = reader.number<int32_t>();
  if (heartbeat.credits < 0) throw FormatError("a heartbeat has {} credits.", heartbeat.credits);
  heartbeat.leases = reader.array<int64_t>();
}

void read_body(WireReader& reader, GroupResult& result) {
  result.lease = reader.number<int64_t>();
  result.serial = reader.number<int64_t>();
  result.completions = PackedCompletions::read(reader);
}

void read_body(WireReader& reader, HandBack& back) {
  back.lease = reader.number<int64_t>();
  back.completions = PackedCompletions::read(reader).unpack();
}

void read_body(WireReader& reader, Welcome& welcome) {
  welcome.heartbeat_ms = read_at_least(reader, 1, "a heartbeat's interval");
  welcome.version = read_at_least(reader, 0, "a policy version");
  welcome.weights_endpoints = read_texts(reader);
}

void read_body(WireReader& reader, Refusal& refusal) {
  refusal.reason = reader.choice(RefusalReason::kUnknownWorker);
  refusal.text = reader.text();
}

void read_body(WireReader& reader, Lease& lease) {
  lease.id = reader.number<int64_t>();
  lease.attempt = reader.number<int32_t>();
  lease.oldest_version = read_at_least(reader, 0, "a policy version");
  lease.exact = read_bool(reader);
  lease.timeout_ms = read_at_least(reader, 1, "a lease's time");
  lease.purpose = reader.choice(RolloutPurpose::kBaseline);
  lease.num_completions = reader.number<int32_t>();
  if (lease.num_completions < 1) throw FormatError("a lease asks for {} completions.", lease.num_completions);
  lease.sampling = read_sampling(reader);
  lease.prompt = read_prompt(reader);
  lease.partials = PackedCompletions::read(reader).unpack();
}

void read_body(WireReader& reader, CancelLease& cancel) { cancel.lease = reader.number<int64_t>(); }

void read_body(WireReader& reader, Ack& ack) {
  ack.lease = reader.number<int64_t>();
  ack.verdict = reader.choice(ResultVerdict::kInvalid);
}

void read_body(WireReader& reader, WeightsAvailable& available) {
  available.version = read_at_least(reader, 0, "a policy version");
}

void read_body(WireReader&, Goodbye&) {}

// The body of the given type, by its index in the variant.
template <size_t index = 0>
RolloutMessage::Body read_typed(uint8_t type, WireReader& reader) {
  if constexpr (index == std::variant_size_v<RolloutMessage::Body>) {
    throw FormatError("a message is of type {}; {} are known.", int{type}, index);
  } else {
    if (type != index) return read_typed<index + 1>(type, reader);
    RolloutMessage::Body body{std::in_place_index<index>};
    read_body(reader, std::get<index>(body));
    return body;
  }
}

uint64_t checksum(std::string_view bytes) {
  return xxh3_64(bytes.substr(kHeaderBytes)) ^ xxh3_64(bytes.substr(0, kChecksumAt));
}

}  // namespace

std::string encode(const RolloutMessage& message) {
  WireWriter writer;
  writer.number(kMessageMagic);
  writer.number(kRolloutProtocol);
  writer.number(static_cast<uint8_t>(message.body.index()));
  writer.number(uint8_t{0});
  writer.number(message.epoch);
  writer.number(uint64_t{0});  // the two that are known at the end
  writer.number(uint64_t{0});
  std::visit(BodyWriter{writer}, message.body);
  std::string bytes = writer.take();
  const uint64_t body_bytes = bytes.size() - kHeaderBytes;
  std::memcpy(bytes.data() + kBodyBytesAt, &body_bytes, sizeof body_bytes);
  const uint64_t sum = checksum(bytes);
  std::memcpy(bytes.data() + kChecksumAt, &sum, sizeof sum);
  return bytes;
}

RolloutMessage decode_rollout_message(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes)
    throw FormatError("a message of {} bytes; a header alone has {}.", bytes.size(), kHeaderBytes);
  WireReader header(bytes.substr(0, kHeaderBytes));
  const auto magic = header.number<uint32_t>();
  if (magic != kMessageMagic) throw FormatError("bytes that are no message of a rollout: they begin with {}.", magic);
  const auto protocol = header.number<uint16_t>();
  if (protocol != kRolloutProtocol)
    throw FormatError("a message of protocol {}, this build speaks {}. Run one build everywhere.", protocol,
                      kRolloutProtocol);
  const auto type = header.number<uint8_t>();
  const auto zero = header.number<uint8_t>();
  RolloutMessage message;
  message.epoch = header.number<int64_t>();
  const auto body_bytes = header.number<uint64_t>();
  const auto sum = header.number<uint64_t>();
  if (zero != 0 || body_bytes != bytes.size() - kHeaderBytes || sum != checksum(bytes))
    throw FormatError("a message of type {} and {} bytes is damaged: {} bytes of body, checksum {}.", int{type},
                      bytes.size(), body_bytes, sum);
  if (message.epoch < 0) throw FormatError("a message of epoch {}.", message.epoch);
  WireReader reader(bytes.substr(kHeaderBytes));
  message.body = read_typed(type, reader);
  if (!reader.at_end()) throw FormatError("a message of type {} has more bytes than members.", int{type});
  return message;
}

std::vector<RolloutMessage> decode_rollout_messages(std::string_view bytes) {
  std::vector<RolloutMessage> messages;
  do {
    size_t size = bytes.size();
    if (size >= kHeaderBytes) {
      const auto body_bytes = WireReader(bytes.substr(kBodyBytesAt)).number<uint64_t>();
      if (body_bytes < size - kHeaderBytes) size = kHeaderBytes + static_cast<size_t>(body_bytes);
    }
    messages.push_back(decode_rollout_message(bytes.substr(0, size)));
    bytes.remove_prefix(size);
  } while (!bytes.empty());
  return messages;
}

std::optional<VersionSpan> version_span(const std::vector<Completion>& completions) {
  std::optional<VersionSpan> span;
  for (const Completion& completion : completions)
    if (!completion.policy_versions.empty()) {
      VersionSpan of = span.value_or(VersionSpan{completion.policy_versions[0], completion.policy_versions[0]});
      for (const PolicyVersion version : completion.policy_versions) {
        of.oldest = std::min(of.oldest, version);
        of.newest = std::max(of.newest, version);
      }
      span = of;
    }
  return span;
}

}  // namespace temper
