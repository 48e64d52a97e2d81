#include "comm/weight_link_sender.h"

#include <exception>

#include "core/log.h"

namespace temper {

WeightLinkSender::WeightLinkSender(std::shared_ptr<WeightLinks> links, std::string id, Done done)
    : links_(std::move(links)), id_(std::move(id)), done_(std::move(done)), thread_([this] { run(); }) {}

WeightLinkSender::~WeightLinkSender() {
  abort();
  thread_.join();
}

void WeightLinkSender::send(int64_t request, std::shared_ptr<const WeightVersion> version) {
  {
    const std::lock_guard lock(mutex_);
    if (!ended_) {
      jobs_.emplace_back(request, std::move(version));
      changed_.notify_all();
      return;
    }
  }
  done_(request, false);
}

void WeightLinkSender::abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  if (link_) link_->abort("the transfer of weights was given up.");
  changed_.notify_all();
}

bool WeightLinkSender::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

// produces: bytes on the link, done(); consumes: jobs; waits for: the other end, then jobs; is unblocked by: send(),
// abort(), the link's own timeout.
void WeightLinkSender::run() {
  try {
    work();
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    if (!aborted_) log_warning("a link for weights has failed, its reader gets messages: {}", error.what());
  }
  std::deque<Job> left;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    left.swap(jobs_);
    link_.reset();
  }
  for (const Job& job : left) done_(job.first, false);
}

void WeightLinkSender::work() {
  std::unique_ptr<WeightLink> connected = links_->connect(id_, WeightLinks::End::kSender);
  std::unique_lock lock(mutex_);
  link_ = std::move(connected);
  while (true) {
    changed_.wait(lock, [this] { return aborted_ || !jobs_.empty(); });
    if (aborted_) return;
    const Job job = jobs_.front();  // stays until it is sent: what is left is reported as not sent
    lock.unlock();
    const std::string_view bytes = job.second->bytes();
    const auto piece = static_cast<size_t>(job.second->manifest().link_piece_bytes());
    for (size_t begin = 0; begin < bytes.size(); begin += piece) link_->send(bytes.substr(begin, piece));
    lock.lock();
    jobs_.pop_front();
    lock.unlock();
    done_(job.first, true);
    lock.lock();
  }
}

}  // namespace temper
