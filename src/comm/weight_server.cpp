#include "comm/weight_server.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "comm/channel.h"
#include "comm/weight_link_sender.h"
#include "comm/weight_messages.h"
#include "comm/weight_version.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxRequestBytes = 4096;
constexpr int kChunksATurn = 4;  // to one reader before the next
// Between looks at what is due without a message: stalled readers, a queue of ZeroMQ that was full.
constexpr std::chrono::milliseconds kLookWhileSending{50}, kLookWhileIdle{1000};

WeightServerOptions checked(WeightServerOptions options) {
  if (options.keep_versions < 1 || options.chunk_bytes < 1 || options.max_transfers < 1)
    throw ConfigError("weights: {} versions kept, chunks of {} bytes, {} transfers at once; each must be at least 1.",
                      options.keep_versions, options.chunk_bytes, options.max_transfers);
  return options;
}

ChannelSettings channel_settings(const WeightServerOptions& options) {
  ChannelSettings settings;
  settings.last_type = kLastWeightMessage;
  settings.max_payload_bytes = kMaxRequestBytes;
  settings.window_bytes = 64 * kMaxRequestBytes;
  settings.allow_plain_text = options.allow_plain_text;
  settings.allow_all_interfaces = options.allow_all_interfaces;
  return settings;
}

}  // namespace

class WeightServer::Service {
 public:
  Service(const std::string& address, const std::optional<ServerKeys>& keys, const WeightServerOptions& options)
      : options_(checked(options)), channel_(address, keys, channel_settings(options)), address_(channel_.address()) {
    thread_ = std::thread([this] { run(); });
  }
  ~Service() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    channel_.wake();
    thread_.join();
  }
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  const std::string& address() const { return address_; }

  void publish(int64_t epoch, PolicyVersion version, const std::vector<WeightPart>& parts) {
    auto next = std::make_shared<WeightVersion>(epoch, version, parts, options_.chunk_bytes);
    const std::lock_guard lock(mutex_);
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    TEMPER_CHECK(std::pair(epoch, version) > newest_, "weights of epoch {}, version {} after {}, {}", epoch, version,
                 newest_.first, newest_.second);
    newest_ = {epoch, version};
    published_.push_back(std::move(next));
    if (published_.size() > static_cast<size_t>(options_.keep_versions)) published_.pop_front();
    ++counters_.versions;
    channel_.wake();
  }

  void allow(const std::string& public_key) {
    const std::lock_guard lock(mutex_);
    allowed_.push_back(public_key);
    channel_.wake();
  }

  WeightServerCounters counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

 private:
  struct Transfer {
    int64_t request = 0;
    std::shared_ptr<WeightVersion> version;
    std::shared_ptr<const WeightVersion> base = {};  // of deltas; null: none (any more)
    bool by_delta = false;                           // began with a base
    std::string link = {};                           // not empty: it goes by this one
    bool announced = false;                          // the manifest is sent
    int64_t next_chunk = 0;
    std::optional<Clock::time_point> last_progress = {};  // since its turn came
  };
  struct Reader {
    bool owes_offer = true;                     // what it is still to be told
    int64_t owes_gone = 0, owes_link_lost = 0;  // of this request
    int64_t last_request = 0;
    std::optional<Transfer> transfer;
    std::unique_ptr<WeightLinkSender> link;  // null: none yet, or it was given up
  };
  struct LinkEnd {
    PeerId peer;
    int64_t request;
    bool sent;
  };
  using Readers = std::map<PeerId, Reader>;

  void run();
  void take_published();
  void keep(std::shared_ptr<WeightVersion> version);
  void drop_oldest();

  void handle(const ChannelMessage& message);
  void on_request(PeerId peer, const WeightRequest& request);
  std::shared_ptr<WeightVersion> find(PolicyVersion version) const;

  bool serve();
  bool tell(PeerId peer, Reader& reader);
  bool send_chunks(PeerId peer, Reader& reader);
  SendResult send_chunk(PeerId peer, Transfer& transfer);
  void close_if_stalled(PeerId peer);
  void begin_link(PeerId peer, Reader& reader);
  void give_up_link(Reader& reader);
  void take_link_ends();
  void end_transfer(PeerId peer, Reader& reader, bool finished);
  void forget(PeerId peer);

  const WeightServerOptions options_;
  ChannelServer channel_;  // the thread's, but for wake()
  const std::string address_;

  mutable std::mutex mutex_;
  bool stopping_ = false;                                 // guarded by mutex_, as what follows
  std::deque<std::shared_ptr<WeightVersion>> published_;  // not taken by the thread yet
  std::vector<std::string> allowed_;                      // the same
  std::vector<LinkEnd> link_ends_;                        // the same
  std::pair<int64_t, PolicyVersion> newest_{-1, -1};
  std::exception_ptr failure_;
  WeightServerCounters counters_;

  // The thread's:
  int64_t epoch_ = 0;
  std::deque<std::shared_ptr<WeightVersion>> versions_;  // of this epoch, ascending
  Readers readers_;
  std::set<PeerId> owing_;     // readers that are to be told something
  std::vector<PeerId> turns_;  // with a transfer that is announced, in the order of asking; the first are served
  std::vector<std::unique_ptr<WeightLinkSender>> given_up_;  // links whose threads come to their end
  std::thread thread_;
};

// produces: offers, manifests, chunks; consumes: requests, published versions; waits for: messages, credit; is
// unblocked by: wake(), and now and then by itself.
void WeightServer::Service::run() {
  try {
    while (true) {
      take_published();
      take_link_ends();
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
        counters_.readers = static_cast<int64_t>(readers_.size());
        const ChannelCounters channel = channel_.counters();
        counters_.refused = channel.refused_in_total() + channel.handshakes_failed + channel.keys_refused;
      }
      const auto look = turns_.empty() && owing_.empty() ? kLookWhileIdle : kLookWhileSending;
      const bool sent = serve();
      if (const auto message = channel_.receive(Clock::now() + (sent ? std::chrono::milliseconds(0) : look)))
        handle(*message);
    }
  } catch (const std::exception& error) {
    log_error("the weight server at {} has ended: {}", address_, error.what());
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
}

void WeightServer::Service::take_published() {
  std::deque<std::shared_ptr<WeightVersion>> published;
  std::vector<std::string> allowed;
  {
    const std::lock_guard lock(mutex_);
    published.swap(published_);
    allowed.swap(allowed_);
  }
  for (const std::string& key : allowed) channel_.allow(key);
  for (std::shared_ptr<WeightVersion>& version : published) keep(std::move(version));
}

void WeightServer::Service::keep(std::shared_ptr<WeightVersion> version) {
  if (version->manifest().epoch != epoch_) {
    while (!versions_.empty()) drop_oldest();
    epoch_ = version->manifest().epoch;
  }
  versions_.push_back(std::move(version));
  while (versions_.size() > static_cast<size_t>(options_.keep_versions)) drop_oldest();
  for (auto& [peer, reader] : readers_) {
    reader.owes_offer = true;
    owing_.insert(peer);
  }
}

// Deltas from it go on as whole chunks.
void WeightServer::Service::drop_oldest() {
  const std::shared_ptr<WeightVersion> oldest = std::move(versions_.front());
  versions_.pop_front();
  for (const auto& version : versions_) version->forget_deltas_from(oldest->manifest().version);
  for (auto& [peer, reader] : readers_) {
    if (!reader.transfer) continue;
    if (reader.transfer->base == oldest) reader.transfer->base.reset();
    if (reader.transfer->version != oldest) continue;
    reader.owes_gone = reader.transfer->request;
    owing_.insert(peer);
    end_transfer(peer, reader, false);
  }
}

void WeightServer::Service::handle(const ChannelMessage& message) {
  if (message.type == kOpened) {
    readers_[message.peer] = {};
    owing_.insert(message.peer);
    return;
  }
  if (message.type == kClosed) return forget(message.peer);
  try {
    if (message.type == kWeightRequest) return on_request(message.peer, decode_weight_request(message.payload()));
    if (message.type != kWeightCancel) throw FormatError("a message of type {} is not for a server.", message.type);
    const int64_t request = decode_request_number(message.payload());
    Reader& reader = readers_.at(message.peer);
    if (reader.transfer && reader.transfer->request == request) end_transfer(message.peer, reader, false);
  } catch (const FormatError& error) {  // the reader's fault, and its connection's end
    channel_.refuse(message.peer, error.what());
    forget(message.peer);
  }
}

void WeightServer::Service::on_request(PeerId peer, const WeightRequest& request) {
  Reader& reader = readers_.at(peer);
  if (request.request <= reader.last_request)
    throw FormatError("request {} for weights came after {}.", request.request, reader.last_request);
  reader.last_request = request.request;
  // Who asks again by the link of the last request has had all of that; the link may not have said so yet.
  const bool by_link = options_.links != nullptr && !request.link.empty();
  if (reader.transfer) end_transfer(peer, reader, by_link && reader.transfer->link == request.link);
  owing_.insert(peer);
  const std::shared_ptr<WeightVersion> version = request.epoch == epoch_ ? find(request.version) : nullptr;
  if (version == nullptr) {
    reader.owes_gone = request.request;
    return;
  }
  reader.transfer = {.request = request.request, .version = version};
  if (by_link) {
    reader.transfer->link = request.link;
    return;
  }
  const std::shared_ptr<WeightVersion> base = find(request.base);
  if (base == nullptr || base == version || base->manifest().checksum != request.base_checksum ||
      !same_parts(base->manifest().parts, version->manifest().parts))
    return;
  reader.transfer->base = base;
  reader.transfer->by_delta = true;
}

std::shared_ptr<WeightVersion> WeightServer::Service::find(PolicyVersion version) const {
  const auto found = std::find_if(versions_.begin(), versions_.end(),
                                  [&](const auto& kept) { return kept->manifest().version == version; });
  return found == versions_.end() ? nullptr : *found;
}

// Everything that there is credit for: first what readers are to be told, then a few chunks to each whose turn it is.
// False where nothing could be sent.
bool WeightServer::Service::serve() {
  bool sent = false;
  const std::vector<PeerId> owing(owing_.begin(), owing_.end());
  for (const PeerId peer : owing)
    if (const auto reader = readers_.find(peer); reader != readers_.end()) sent |= tell(peer, reader->second);
  const std::vector<PeerId> served(
      turns_.begin(), turns_.begin() + std::min<int64_t>(options_.max_transfers, static_cast<int64_t>(turns_.size())));
  for (const PeerId peer : served)
    if (const auto reader = readers_.find(peer); reader != readers_.end() && send_chunks(peer, reader->second))
      sent = true;
    else
      close_if_stalled(peer);
  return sent;
}

// An offer comes before the news that a version went: whoever hears that knows what there is instead.
bool WeightServer::Service::tell(PeerId peer, Reader& reader) {
  const auto send = [&](uint16_t type, const std::string& payload) {
    const SendResult result = channel_.send(peer, type, payload);
    if (result == SendResult::kGone) forget(peer);
    return result == SendResult::kSent;
  };
  if (reader.owes_offer) {
    WeightOffer offer{.epoch = epoch_};
    for (const auto& version : versions_) offer.versions.push_back(version->manifest().version);
    if (!send(kWeightOffer, encode(offer))) return false;
    reader.owes_offer = false;
  }
  if (reader.owes_gone != 0) {
    if (!send(kWeightGone, encode_request_number(reader.owes_gone))) return false;
    reader.owes_gone = 0;
  }
  if (reader.owes_link_lost != 0) {
    if (!send(kWeightLinkLost, encode_request_number(reader.owes_link_lost))) return false;
    reader.owes_link_lost = 0;
  }
  if (reader.transfer && !reader.transfer->announced) {
    WeightManifest manifest = reader.transfer->version->manifest();
    manifest.request = reader.transfer->request;
    if (reader.transfer->base != nullptr) manifest.base = reader.transfer->base->manifest().version;
    if (!reader.transfer->link.empty()) manifest.route = WeightRoute::kLink;
    if (!send(kWeightManifest, encode(manifest))) return false;
    reader.transfer->announced = true;
    if (reader.transfer->link.empty())
      turns_.push_back(peer);
    else
      begin_link(peer, reader);
  }
  owing_.erase(peer);
  return true;
}

bool WeightServer::Service::send_chunks(PeerId peer, Reader& reader) {
  Transfer& transfer = *reader.transfer;
  const int64_t num_chunks = transfer.version->num_chunks();
  bool sent = false;
  for (int i = 0; i < kChunksATurn && transfer.next_chunk < num_chunks; ++i) {
    const SendResult result = send_chunk(peer, transfer);
    if (result == SendResult::kGone) {
      forget(peer);
      return sent;
    }
    if (result == SendResult::kNoCredit) return sent;
    sent = true;
    ++transfer.next_chunk;
    transfer.last_progress = Clock::now();
  }
  if (transfer.next_chunk == num_chunks) end_transfer(peer, reader, true);
  return true;
}

SendResult WeightServer::Service::send_chunk(PeerId peer, Transfer& transfer) {
  WeightVersion& version = *transfer.version;
  WeightChunk chunk{.request = transfer.request,
                    .index = transfer.next_chunk,
                    .checksum = version.chunk_checksum(transfer.next_chunk),
                    .bytes = version.chunk(transfer.next_chunk)};
  double encode_s = 0;
  if (transfer.base != nullptr) {
    const Stopwatch watch;
    const std::string_view delta = version.delta(*transfer.base, chunk.index);
    encode_s = watch.seconds();
    if (!delta.empty()) {
      chunk.encoding = ChunkEncoding::kDelta;
      chunk.bytes = delta;
    }
  }
  const std::string header = encode_chunk_header(chunk);
  const std::string_view payload[] = {header, chunk.bytes};
  const SendResult result = channel_.send(peer, kWeightChunk, payload);
  const std::lock_guard lock(mutex_);
  counters_.encode_s += encode_s;
  if (result == SendResult::kSent)
    (chunk.encoding == ChunkEncoding::kDelta ? counters_.delta_bytes : counters_.raw_bytes) +=
        static_cast<int64_t>(chunk.bytes.size());
  return result;
}

// Called where a reader whose turn it is could be sent nothing.
void WeightServer::Service::close_if_stalled(PeerId peer) {
  const auto reader = readers_.find(peer);
  if (reader == readers_.end() || !reader->second.transfer) return;
  Transfer& transfer = *reader->second.transfer;
  if (!transfer.last_progress) transfer.last_progress = Clock::now();
  if (Clock::now() - *transfer.last_progress < options_.stall_timeout) return;
  log_warning("a reader of weights has taken nothing for {} s, at chunk {} of {}: its connection is closed.",
              static_cast<double>(options_.stall_timeout.count()) / 1000, transfer.next_chunk,
              transfer.version->num_chunks());
  channel_.close(peer);
  forget(peer);
}

void WeightServer::Service::begin_link(PeerId peer, Reader& reader) {
  const Transfer& transfer = *reader.transfer;
  if (transfer.version->num_chunks() == 0) return end_transfer(peer, reader, true);
  if (reader.link && reader.link->id() != transfer.link) give_up_link(reader);
  if (!reader.link)
    reader.link =
        std::make_unique<WeightLinkSender>(options_.links, transfer.link, [this, peer](int64_t request, bool sent) {
          const std::lock_guard lock(mutex_);
          link_ends_.push_back({peer, request, sent});
          channel_.wake();
        });
  reader.link->send(transfer.request, transfer.version);
}

// Its thread may need a while: nobody waits for it here.
void WeightServer::Service::give_up_link(Reader& reader) {
  reader.link->abort();
  given_up_.push_back(std::move(reader.link));
}

// A reader whose link has failed is told so, and asks again for chunks.
void WeightServer::Service::take_link_ends() {
  std::vector<LinkEnd> ends;
  {
    const std::lock_guard lock(mutex_);
    ends.swap(link_ends_);
  }
  std::erase_if(given_up_, [](const auto& link) { return link->ended(); });
  for (const LinkEnd& end : ends) {
    const auto found = readers_.find(end.peer);
    if (found == readers_.end()) continue;
    Reader& reader = found->second;
    if (!reader.transfer || reader.transfer->request != end.request) continue;
    if (!end.sent) {
      reader.owes_link_lost = end.request;
      owing_.insert(end.peer);
    }
    end_transfer(end.peer, reader, end.sent);
  }
}

void WeightServer::Service::end_transfer(PeerId peer, Reader& reader, bool finished) {
  const Transfer transfer = std::move(*reader.transfer);
  reader.transfer.reset();
  std::erase(turns_, peer);
  if (!finished && !transfer.link.empty() && reader.link) give_up_link(reader);
  const std::lock_guard lock(mutex_);
  if (!finished) {
    ++counters_.ended_transfers;
  } else if (!transfer.link.empty()) {
    ++counters_.link_transfers;
    counters_.link_bytes += transfer.version->manifest().stream_bytes();
  } else {
    ++(transfer.by_delta ? counters_.delta_transfers : counters_.full_transfers);
  }
}

void WeightServer::Service::forget(PeerId peer) {
  const auto reader = readers_.find(peer);
  if (reader == readers_.end()) return;
  if (reader->second.transfer) end_transfer(peer, reader->second, false);
  if (reader->second.link) give_up_link(reader->second);
  owing_.erase(peer);
  readers_.erase(reader);
}

WeightServer::WeightServer(const std::string& address, const std::optional<ServerKeys>& keys,
                           WeightServerOptions options)
    : service_(std::make_unique<Service>(address, keys, options)) {}
WeightServer::~WeightServer() = default;
const std::string& WeightServer::address() const { return service_->address(); }
void WeightServer::publish(int64_t epoch, PolicyVersion version, const std::vector<WeightPart>& parts) {
  service_->publish(epoch, version, parts);
}
void WeightServer::allow(const std::string& public_key) { service_->allow(public_key); }
WeightServerCounters WeightServer::counters() const { return service_->counters(); }

}  // namespace temper
