#include "rollout/text_stream.h"

#include <algorithm>

#include "data/utf8.h"

namespace temper {
namespace {

// Length of the longest end of `text` that `stop` begins with, short of all of it.
size_t begun_stop_string(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length)
    if (text.ends_with(stop.substr(0, length))) return length;
  return 0;
}

}  // namespace

std::string TextStream::append(std::string_view bytes) {
  if (stopped_) return "";
  begun_ += bytes;
  const size_t whole = begun_.size() - begun_utf8_suffix(begun_);
  held_ += to_valid_utf8(std::string_view(begun_).substr(0, whole));
  begun_.erase(0, whole);
  return release(false);
}

std::string TextStream::finish() {
  if (stopped_) return "";
  held_ += to_valid_utf8(begun_);
  begun_.clear();
  return release(true);
}

std::string TextStream::release(bool all) {
  size_t end = std::string::npos, keep = 0;
  for (const std::string& stop : stop_) {
    end = std::min(end, held_.find(stop));
    keep = std::max(keep, begun_stop_string(held_, stop));
  }
  stopped_ = end != std::string::npos;
  if (!stopped_) end = held_.size() - (all ? 0 : keep);
  std::string out = held_.substr(0, end);
  held_.erase(0, stopped_ ? std::string::npos : end);
  return out;
}

}  // namespace temper
