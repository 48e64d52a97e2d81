// What a rank with a good key must not send: a client refuses it with one sentence and keeps the version before.
#include <atomic>
#include <functional>
#include <thread>

#include "comm/weight_link.h"
#include "comm/weight_messages.h"
#include "comm/weight_version.h"
#include "core/error.h"
#include "core/hash.h"
#include "tests/comm/weight_fixture.h"

namespace temper {
namespace {

// A rank that holds one part and answers each request with version `offered`, as the hooks falsify it.
class LyingRank {
 public:
  std::function<void(WeightManifest&)> change_manifest = [](WeightManifest&) {};
  std::function<void(WeightChunk&, std::string&)> change_chunk = [](WeightChunk&, std::string&) {};
  std::function<void(std::string&)> change_payload = [](std::string&) {};  // of a manifest
  PolicyVersion first_kept = 0;  // of versions above 0; those before it are gone

  explicit LyingRank(const TestKeys& keys, WeightPart part = whole_part())
      : part_(std::move(part)), channel_(kAnyPort, keys.server(), test_settings()), address_(channel_.address()) {}
  ~LyingRank() {
    stopping_ = true;
    channel_.wake();
    if (thread_.joinable()) thread_.join();
  }
  // Serves from now on; version 0 is honest.
  void start() {
    thread_ = std::thread([this] { serve(); });
  }
  void offer(PolicyVersion version) {
    newest_ = version;
    channel_.wake();
  }
  const std::string& address() const { return address_; }

  static constexpr int64_t kElements = 1000, kChunk = 300;
  static WeightPart whole_part() { return {"a", WeightDtype::kInt8, {kElements}, 0, kElements, {}}; }
  static std::string bytes_of(PolicyVersion version) {
    std::string bytes(kElements, 'x');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i + static_cast<size_t>(version));
    return bytes;
  }

 private:
  WeightVersion make(PolicyVersion version) const {
    const std::string bytes = bytes_of(version);
    WeightPart part = part_;
    part.bytes =
        std::string_view(bytes).substr(static_cast<size_t>(part.begin), static_cast<size_t>(part.end - part.begin));
    return {1, version, {part}, kChunk};
  }
  void serve() {
    PeerId peer = 0;
    PolicyVersion told = -1;
    while (!stopping_) {
      const auto message = channel_.receive(patience());
      if (message && message->type == kOpened) {
        peer = message->peer;
        told = -1;
      }
      if (peer != 0 && told != newest_) {
        told = newest_;
        channel_.send(peer, kWeightOffer, encode(WeightOffer{1, {told}}));
      }
      if (message && message->type == kWeightRequest) answer(peer, decode_weight_request(message->payload()));
    }
  }
  void answer(PeerId peer, const WeightRequest& request) {
    if (request.version > 0 && request.version < first_kept) {
      channel_.send(peer, kWeightGone, encode_request_number(request.request));
      channel_.send(peer, kWeightOffer, encode(WeightOffer{1, {request.version, request.version + 1}}));
      return;
    }
    WeightVersion version = make(request.version);
    const WeightVersion base = make(std::max<PolicyVersion>(request.base, 0));
    WeightManifest manifest = version.manifest();
    manifest.request = request.request;
    manifest.base = request.base;
    if (request.version > 0) change_manifest(manifest);
    std::string payload = encode(manifest);
    if (request.version > 0) change_payload(payload);
    channel_.send(peer, kWeightManifest, payload);
    for (int64_t index = 0; index < version.num_chunks(); ++index) {
      WeightChunk chunk{.request = request.request, .index = index, .checksum = version.chunk_checksum(index)};
      const std::string_view delta = request.base < 0 ? "" : version.delta(base, index);
      std::string bytes(delta.empty() ? version.chunk(index) : delta);
      if (!delta.empty()) chunk.encoding = ChunkEncoding::kDelta;
      if (request.version > 0) change_chunk(chunk, bytes);
      channel_.send(peer, kWeightChunk, encode_chunk_header(chunk) + bytes);
    }
  }

  WeightPart part_;
  ChannelServer channel_;  // the thread's, but for wake()
  const std::string address_;
  std::atomic<PolicyVersion> newest_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

class WeightRefusal : public testing::Test {
 protected:
  // Fetches version 0, then the falsified one: what the client says. What it has must be version 0 still.
  std::string refusal_of(const std::function<void(LyingRank&)>& falsify, bool deltas = true,
                         std::shared_ptr<WeightLinks> links = nullptr) {
    LyingRank rank(keys_);
    falsify(rank);
    rank.start();
    WeightClientOptions options;
    options.deltas = deltas;
    options.links = std::move(links);
    options.max_weight_bytes = 10'000;
    WeightClient client({rank.address()}, keys_.client(), options);
    EXPECT_EQ(client.fetch(1, 0, patience()).tensors.at("a").bytes, LyingRank::bytes_of(0));
    rank.offer(1);
    std::string what;
    try {
      client.fetch(1, 1, patience());
    } catch (const FormatError& error) {
      what = error.what();
    }
    EXPECT_EQ(client.current().version, 0);
    EXPECT_EQ(client.current().tensors.at("a").bytes, LyingRank::bytes_of(0));
    EXPECT_EQ(client.counters().refused, 1);
    EXPECT_NE(what.find("Version 0 stays in use"), std::string::npos) << what;
    return what;
  }
  std::string refused_chunk(const std::function<void(WeightChunk&, std::string&)>& change, bool deltas = true) {
    return refusal_of([&](LyingRank& rank) { rank.change_chunk = change; }, deltas);
  }
  std::string refused_manifest(const std::function<void(WeightManifest&)>& change) {
    return refusal_of([&](LyingRank& rank) { rank.change_manifest = change; });
  }

  TestKeys keys_;
};

using testing::HasSubstr;

TEST_F(WeightRefusal, AnHonestRankIsTakenFrom) {
  LyingRank rank(keys_);
  rank.start();
  WeightClient client({rank.address()}, keys_.client());
  for (PolicyVersion version = 0; version < 3; ++version) {
    rank.offer(version);
    EXPECT_EQ(client.fetch(1, version, patience()).tensors.at("a").bytes, LyingRank::bytes_of(version));
  }
  EXPECT_EQ(client.counters().delta_parts, 2);
}

TEST_F(WeightRefusal, BytesThatWereChanged) {
  const auto flip = [](WeightChunk& chunk, std::string& bytes) {
    if (chunk.index == 2) bytes[17] = static_cast<char>(bytes[17] ^ 4);
  };
  EXPECT_THAT(refused_chunk(flip, false), HasSubstr("chunk 2 has 300 bytes of 300, checksum"));
  refused_chunk(flip, true);
}

TEST_F(WeightRefusal, ChunksThatAreShortOrLong) {
  EXPECT_THAT(refused_chunk([](WeightChunk&, std::string& bytes) { bytes.pop_back(); }, false),
              HasSubstr("chunk 0 has 299 bytes of 300"));
  EXPECT_THAT(refused_chunk([](WeightChunk&, std::string& bytes) { bytes += 'x'; }, false),
              HasSubstr("chunk 0 has 301 bytes of 300"));
  EXPECT_THAT(refused_chunk([](WeightChunk&, std::string& bytes) { bytes.resize(bytes.size() / 2); }),
              HasSubstr("cannot be unpacked"));
}

TEST_F(WeightRefusal, ChunksOutOfOrderOrBeyondTheEnd) {
  EXPECT_THAT(refused_chunk([](WeightChunk& chunk, std::string&) { chunk.index += chunk.index > 1 ? 1 : 0; }),
              HasSubstr("chunk 3 of 4 came, 2 was due"));
  EXPECT_THAT(refused_chunk([](WeightChunk& chunk, std::string&) { chunk.index = 0; }),
              HasSubstr("chunk 0 of 4 came, 1 was due"));
}

TEST_F(WeightRefusal, DeltasThatNobodyAskedFor) {
  EXPECT_THAT(refused_chunk([](WeightChunk& chunk, std::string&) { chunk.encoding = ChunkEncoding::kDelta; }, false),
              HasSubstr("is a delta from nothing"));
}

// A way that leads nowhere.
class DeadEnd : public WeightLinks {
 public:
  std::string new_id() override { return "nowhere"; }
  std::unique_ptr<WeightLink> connect(const std::string&, End) override {
    std::this_thread::sleep_for(300ms);
    throw CommError("there is nobody.");
  }
};

TEST_F(WeightRefusal, ALinkThatNobodyAskedForAndChunksInPlaceOfALink) {
  const auto by_link = [](LyingRank& rank) {
    rank.change_manifest = [](WeightManifest& manifest) { manifest.route = WeightRoute::kLink; };
  };
  EXPECT_THAT(refusal_of(by_link), HasSubstr("by a link that was not asked for"));
  EXPECT_THAT(refusal_of(by_link, true, std::make_shared<DeadEnd>()),
              HasSubstr("chunk 0 came as a message, the link was to bring it"));
}

// Each chunk is as it should be, but they are not those of the version that was announced.
TEST_F(WeightRefusal, AWholeThatIsNotWhatWasAnnounced) {
  const auto torn = [](WeightChunk& chunk, std::string& bytes) {
    if (chunk.index != 1) return;
    bytes = LyingRank::bytes_of(0).substr(300, 300);
    chunk.checksum = xxh3_64(bytes);
    chunk.encoding = ChunkEncoding::kRaw;
  };
  EXPECT_THAT(refused_chunk(torn), HasSubstr("the whole has checksum"));
}

TEST_F(WeightRefusal, AnotherVersionThanWasAskedFor) {
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) { manifest.version = 2; }), HasSubstr("it lists epoch 1"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) { manifest.epoch = 2; }), HasSubstr("it lists epoch 2"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) { manifest.base = 7; }), HasSubstr("from base 7"));
}

TEST_F(WeightRefusal, PartsThatAreNotTheTensors) {
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) {
                manifest.parts[0].end = 900;
                manifest.base = -1;
              }),
              HasSubstr("the ranks have 900 of 1000 elements"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) {
                manifest.parts.push_back(manifest.parts[0]);
                manifest.base = -1;
              }),
              HasSubstr("two of one"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) { manifest.parts[0].name += 'b'; }),
              HasSubstr("other parts"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) { manifest.parts[0].end = 1001; }),
              HasSubstr("elements 0 to 1001 of 1000"));
  EXPECT_THAT(refused_manifest([](WeightManifest& manifest) {
                manifest.parts[0].shape = {int64_t{1} << 40};
                manifest.parts[0].end = int64_t{1} << 40;
                manifest.base = -1;
              }),
              HasSubstr("more than the 10000 allowed"));
}

TEST_F(WeightRefusal, AManifestThatIsNone) {
  for (const size_t cut : {0, 1, 39, 80}) {
    const auto cut_off = [&](std::string& payload) { payload.resize(payload.size() - 1 - cut); };
    refusal_of([&](LyingRank& rank) { rank.change_payload = cut_off; });
  }
}

TEST_F(WeightRefusal, RanksThatHoldTheSameOrLeaveSomethingOut) {
  for (const auto& [begin, words] : std::map<int64_t, std::string>{{400, "two of one"}, {600, "some are missing"}}) {
    LyingRank first(keys_, {"a", WeightDtype::kInt8, {1000}, 0, 500, {}});
    LyingRank second(keys_, {"a", WeightDtype::kInt8, {1000}, begin, 1000, {}});
    first.start();
    second.start();
    WeightClient client({first.address(), second.address()}, keys_.client());
    try {
      client.fetch(1, 0, patience());
      ADD_FAILURE();
    } catch (const FormatError& error) {
      EXPECT_THAT(error.what(), HasSubstr(words));
    }
    EXPECT_EQ(client.current().version, -1);
  }
}

TEST_F(WeightRefusal, AVersionThatIsGoneIsTriedAgainWithTheNext) {
  LyingRank rank(keys_);
  rank.first_kept = 3;
  rank.start();
  WeightClient client({rank.address()}, keys_.client());
  client.fetch(1, 0, patience());
  rank.offer(1);
  EXPECT_EQ(client.fetch(1, 1, patience()).version, 3);
  EXPECT_GE(client.counters().retries, 2);  // more where an answer overtakes the offer that follows it
}

TEST_F(WeightRefusal, AfterOneTheNextHonestVersionIsTaken) {
  LyingRank rank(keys_);
  rank.change_chunk = [lies = 1](WeightChunk&, std::string& bytes) mutable {
    if (lies-- > 0) bytes.clear();
  };
  rank.start();
  WeightClient client({rank.address()}, keys_.client());
  client.fetch(1, 0, patience());
  rank.offer(1);
  EXPECT_THROW(client.fetch(1, 1, patience()), FormatError);
  EXPECT_EQ(client.fetch(1, 1, patience()).tensors.at("a").bytes, LyingRank::bytes_of(1));
}

}  // namespace
}  // namespace temper
