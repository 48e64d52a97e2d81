#include "comm/weight_source.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook{500};  // for why the connection does not come about

ChannelSettings channel_settings(const WeightClientOptions& options) {
  ChannelSettings settings;
  settings.last_type = kLastWeightMessage;
  settings.max_payload_bytes = options.max_message_bytes;
  settings.window_bytes = options.window_bytes;
  settings.allow_plain_text = options.allow_plain_text;
  settings.linger = std::chrono::milliseconds(0);
  return settings;
}

}  // namespace

WeightSource::WeightSource(size_t rank, const std::string& endpoint, const std::optional<ClientKeys>& keys,
                           const WeightClientOptions& options, WeightBoard& board)
    : rank_(rank),
      endpoint_(endpoint),
      channel_(endpoint, keys, channel_settings(options)),
      board_(board),
      links_(options.links) {
  if (links_) link_thread_ = std::thread([this] { run_link(); });
  thread_ = std::thread([this] { run(); });
}

WeightSource::~WeightSource() {
  {
    const std::lock_guard lock(board_.mutex);
    quitting_ = true;
    if (link_busy_ && link_) link_->abort("the reader of weights ends.");
    board_.changed.notify_all();
  }
  channel_.wake();
  thread_.join();
  if (link_thread_.joinable()) link_thread_.join();
}

void WeightSource::ask(WeightRequest request) {
  TEMPER_CHECK(phase_ == Phase::kIdle, "{} is asked twice", describe());
  request_ = std::move(request);
  request_.link = link_id();
  unsent_request_ = true;
  unsent_cancel_ = false;  // the request says it too
  phase_ = Phase::kAsked;
  channel_.wake();
}

void WeightSource::receive_into(WeightSet& set, WeightSet* base) {
  TEMPER_CHECK(phase_ == Phase::kListed, "{} has no manifest yet", describe());
  set_ = &set;
  base_ = base;
  num_placed_ = 0;
  link_wanted_ = !set.is_complete(rank_) && manifest_.route == WeightRoute::kLink;
  enter(set.is_complete(rank_) ? Phase::kDone : Phase::kReceiving);  // a rank may hold nothing
}

void WeightSource::cancel() {
  unsent_cancel_ = (is_busy() || phase_ == Phase::kBroken) && !unsent_request_;
  unsent_request_ = false;
  if (link_wanted_ || link_busy_) drop_link("the fetch was given up.");
  enter(Phase::kIdle);
  channel_.wake();
}

// What is under way on it is of no use any more. (Its thread resets the one that it is at.)
void WeightSource::drop_link(const char* why) {
  link_wanted_ = false;
  if (link_busy_) {
    if (link_) link_->abort(why);
    return;
  }
  link_.reset();
  link_id_.clear();
}

// Of the link that the next request may come by; empty: none.
std::string WeightSource::link_id() {
  if (!links_ || link_failed_ || link_busy_) return {};
  try {
    if (link_id_.empty()) link_id_ = links_->new_id();
  } catch (const CommError& error) {
    link_failed_ = true;
    log_warning("{}: weights come as messages: {}", describe(), error.what());
  }
  return link_id_;
}

std::string WeightSource::describe() const { return format("rank {} ({})", rank_, endpoint_); }

std::string WeightSource::progress() const {
  if (!offer_) return format("{}: {}", describe(), connection_trouble_.empty() ? "no answer yet" : connection_trouble_);
  if (phase_ == Phase::kReceiving)
    return format("{} has sent {} of {} chunks of version {}", describe(), num_placed_, manifest_.num_chunks(),
                  request_.version);
  return offer_->versions.empty()
             ? format("{} has no version yet", describe())
             : format("{} has versions up to {} of epoch {}", describe(), offer_->versions.back(), offer_->epoch);
}

// produces: chunks in their place; consumes: frames, orders; waits for: either, and with the first chunk in hand for
// the set that it belongs to; is unblocked by: wake(), cancel(), the destructor.
void WeightSource::run() {
  try {
    while (true) {
      {
        const std::lock_guard lock(board_.mutex);
        if (quitting_) return;
        send_order();
        connection_trouble_ = channel_.refusal();
      }
      if (const auto message = channel_.receive(Clock::now() + kLook)) handle(*message);
    }
  } catch (...) {
    const std::lock_guard lock(board_.mutex);
    failure_ = std::current_exception();
    board_.changed.notify_all();
  }
}

void WeightSource::send_order() {
  if (!unsent_request_ && !unsent_cancel_) return;
  const SendResult sent = unsent_request_ ? channel_.send(kWeightRequest, encode(request_))
                                          : channel_.send(kWeightCancel, encode_request_number(request_.request));
  if (sent == SendResult::kNoCredit) return;  // again when the rank has taken something
  if (sent == SendResult::kGone) {
    offer_.reset();
    if (unsent_request_) enter(Phase::kLost);
  }
  unsent_request_ = unsent_cancel_ = false;
}

void WeightSource::handle(const ChannelMessage& message) {
  {
    const std::lock_guard lock(board_.mutex);
    wire_bytes_ += static_cast<int64_t>(message.payload().size());
  }
  try {
    switch (message.type) {
      case kOpened: {
        const std::lock_guard lock(board_.mutex);
        link_failed_ = false;
        return;
      }
      case kClosed: {
        const std::lock_guard lock(board_.mutex);
        offer_.reset();
        unsent_request_ = unsent_cancel_ = false;
        if (is_busy()) phase_ = Phase::kLost;
        drop_link("the connection is lost.");
        board_.changed.notify_all();
        return;
      }
      case kWeightOffer:
        return on_offer(decode_weight_offer(message.payload()));
      case kWeightManifest:
        return on_manifest(decode_weight_manifest(message.payload()));
      case kWeightChunk:
        return on_chunk(decode_weight_chunk(message.payload()));
      case kWeightGone:
        return on_gone(decode_request_number(message.payload()));
      case kWeightLinkLost:
        return on_link_lost(decode_request_number(message.payload()));
      default:
        throw FormatError("a message of type {} is not for a reader.", message.type);
    }
  } catch (const FormatError& error) {  // kept for the fetch that it ends
    const std::lock_guard lock(board_.mutex);
    if (!link_busy_) placing_ = false;  // the link's thread may be at it
    refusal_ = error.what();
    enter(is_busy() ? Phase::kBroken : phase_);
  }
}

void WeightSource::on_offer(WeightOffer offer) {
  const std::lock_guard lock(board_.mutex);
  offer_ = std::move(offer);
  board_.changed.notify_all();
}

void WeightSource::on_manifest(WeightManifest manifest) {
  const std::lock_guard lock(board_.mutex);
  if (phase_ != Phase::kAsked || manifest.request != request_.request) return;  // of a request that was given up
  if (manifest.epoch != request_.epoch || manifest.version != request_.version ||
      (manifest.base >= 0 && manifest.base != request_.base))
    throw FormatError("epoch {}, version {} from base {} was asked for; it lists epoch {}, version {} from base {}.",
                      request_.epoch, request_.version, request_.base, manifest.epoch, manifest.version, manifest.base);
  if (manifest.route == WeightRoute::kLink && request_.link.empty())
    throw FormatError("it sends by a link that was not asked for.");
  manifest_ = std::move(manifest);
  enter(Phase::kListed);
}

void WeightSource::on_chunk(const WeightChunk& chunk) {
  std::unique_lock lock(board_.mutex);
  if (chunk.request != request_.request) return;
  board_.changed.wait(lock, [&] { return quitting_ || phase_ != Phase::kListed; });
  if (quitting_ || phase_ != Phase::kReceiving) return;
  if (manifest_.route == WeightRoute::kLink)
    throw FormatError("chunk {} came as a message, the link was to bring it.", chunk.index);
  placing_ = true;
  lock.unlock();
  const Stopwatch watch;
  set_->place(rank_, chunk, base_);
  const bool done = set_->is_complete(rank_);
  lock.lock();
  apply_s_ += watch.seconds();
  ++num_placed_;
  placing_ = false;
  enter(done && phase_ == Phase::kReceiving ? Phase::kDone : phase_);
}

// produces: bytes in their place; consumes: what the link brings; waits for: receive_into(), then the other end;
// is unblocked by: cancel() and the destructor, which abort the link, or its own timeout.
void WeightSource::run_link() {
  std::unique_lock lock(board_.mutex);
  while (true) {
    board_.changed.wait(lock, [this] { return quitting_ || link_wanted_; });
    if (quitting_) return;
    link_wanted_ = false;
    link_busy_ = true;
    const int64_t request = request_.request;
    std::string failure, refusal;
    lock.unlock();
    try {
      receive_by_link();
    } catch (const FormatError& error) {
      refusal = error.what();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    lock.lock();
    link_busy_ = placing_ = false;
    const bool wanted = phase_ == Phase::kReceiving && request_.request == request;
    if (!wanted || !refusal.empty() || !failure.empty()) {  // what is still under way on it belongs to nothing
      link_.reset();
      link_id_.clear();
    }
    board_.changed.notify_all();
    if (!wanted) continue;
    if (!failure.empty()) {
      link_failed_ = true;
      log_warning("{}: the link has failed, weights come as messages: {}", describe(), failure);
    }
    refusal_ = refusal;
    enter(!refusal.empty() ? Phase::kBroken : !failure.empty() ? Phase::kLost : Phase::kDone);
  }
}

// The stream of the request under way, or as much of it as is wanted.
void WeightSource::receive_by_link() {
  std::unique_lock lock(board_.mutex);
  const int64_t request = request_.request;
  const int64_t stream_bytes = manifest_.stream_bytes(), longest = manifest_.link_piece_bytes();
  const std::string id = link_id_;
  const bool connected = link_ != nullptr;
  lock.unlock();
  if (!connected) {
    std::unique_ptr<WeightLink> made = links_->connect(id, WeightLinks::End::kReader);
    lock.lock();
    link_ = std::move(made);
    if (quitting_ || phase_ != Phase::kReceiving || request_.request != request) return;
    lock.unlock();
  }
  std::string piece;
  for (int64_t begin = 0; begin < stream_bytes; begin += longest) {
    piece.resize(static_cast<size_t>(std::min(longest, stream_bytes - begin)));
    link_->receive(piece);
    if (!place_piece(request, piece)) return;
  }
}

// As chunks, whose checksums are of what came: the stream's own is that of the manifest. False: nobody wants it.
bool WeightSource::place_piece(int64_t request, std::string_view bytes) {
  std::unique_lock lock(board_.mutex);
  if (quitting_ || phase_ != Phase::kReceiving || request_.request != request) return false;
  placing_ = true;
  const auto longest = static_cast<size_t>(manifest_.chunk_bytes);
  WeightChunk chunk{.request = request, .index = num_placed_};
  lock.unlock();
  const Stopwatch watch;
  for (size_t begin = 0; begin < bytes.size(); begin += longest, ++chunk.index) {
    chunk.bytes = bytes.substr(begin, longest);
    chunk.checksum = xxh3_64(chunk.bytes);
    set_->place(rank_, chunk, nullptr);
  }
  lock.lock();
  apply_s_ += watch.seconds();
  num_placed_ = chunk.index;
  placing_ = false;
  board_.changed.notify_all();
  return true;
}

void WeightSource::on_gone(int64_t request) {
  const std::lock_guard lock(board_.mutex);
  if (!is_busy() || request != request_.request) return;
  if (offer_ && offer_->epoch == request_.epoch) std::erase(offer_->versions, request_.version);
  enter(Phase::kLost);
}

void WeightSource::on_link_lost(int64_t request) {
  const std::lock_guard lock(board_.mutex);
  if (!is_busy() || request != request_.request) return;
  link_failed_ = true;
  drop_link("the other end has failed.");
  enter(Phase::kLost);
}

void WeightSource::enter(Phase phase) {
  phase_ = phase;
  board_.changed.notify_all();
}

}  // namespace temper
