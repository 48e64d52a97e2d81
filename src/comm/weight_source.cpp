#include "comm/weight_source.h"

#include <chrono>
#include <exception>
#include <utility>

#include "core/clock.h"
#include "core/error.h"

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
    : rank_(rank), endpoint_(endpoint), channel_(endpoint, keys, channel_settings(options)), board_(board) {
  thread_ = std::thread([this] { run(); });
}

WeightSource::~WeightSource() {
  {
    const std::lock_guard lock(board_.mutex);
    quitting_ = true;
    board_.changed.notify_all();
  }
  channel_.wake();
  thread_.join();
}

void WeightSource::ask(WeightRequest request) {
  TEMPER_CHECK(phase_ == Phase::kIdle, "{} is asked twice", describe());
  request_ = std::move(request);
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
  enter(set.is_complete(rank_) ? Phase::kDone : Phase::kReceiving);  // a rank may hold nothing
}

void WeightSource::cancel() {
  unsent_cancel_ = (is_busy() || phase_ == Phase::kBroken) && !unsent_request_;
  unsent_request_ = false;
  enter(Phase::kIdle);
  channel_.wake();
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
      case kOpened:
        return;
      case kClosed: {
        const std::lock_guard lock(board_.mutex);
        offer_.reset();
        unsent_request_ = unsent_cancel_ = false;
        if (is_busy()) phase_ = Phase::kLost;
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
      default:
        throw FormatError("a message of type {} is not for a reader.", message.type);
    }
  } catch (const FormatError& error) {  // kept for the fetch that it ends
    const std::lock_guard lock(board_.mutex);
    placing_ = false;
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
  manifest_ = std::move(manifest);
  enter(Phase::kListed);
}

void WeightSource::on_chunk(const WeightChunk& chunk) {
  std::unique_lock lock(board_.mutex);
  if (chunk.request != request_.request) return;
  board_.changed.wait(lock, [&] { return quitting_ || phase_ != Phase::kListed; });
  if (quitting_ || phase_ != Phase::kReceiving) return;
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

void WeightSource::on_gone(int64_t request) {
  const std::lock_guard lock(board_.mutex);
  if (!is_busy() || request != request_.request) return;
  if (offer_ && offer_->epoch == request_.epoch) std::erase(offer_->versions, request_.version);
  enter(Phase::kLost);
}

void WeightSource::enter(Phase phase) {
  phase_ = phase;
  board_.changed.notify_all();
}

}  // namespace temper
