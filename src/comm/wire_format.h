// Groups as bytes, between processes of one build: counts and numbers in the machine's own order (little-endian on
// every machine that Temper runs on), each string and array after its length as an i64. Nothing outlives a message, so
// there is no version; what is cut short or says impossible lengths is a FormatError.
#pragma once
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/rollout_types.h"

namespace temper {

// Appends numbers, texts and arrays to a message.
class WireWriter {
 public:
  explicit WireWriter(std::string before = "") : bytes_(std::move(before)) {}
  template <class T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view value) {
    number(static_cast<int64_t>(value.size()));
    bytes_.append(value);
  }
  template <class T>
  void array(const std::vector<T>& values) {
    number(static_cast<int64_t>(values.size()));
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  // What is mostly its neighbour's again: the number of runs, then value and length of each.
  template <class T>
  void runs(const std::vector<T>& values) {
    const size_t count_at = bytes_.size();
    int64_t count = 0;
    number(count);
    for (size_t begin = 0, end = 0; begin < values.size(); begin = end, ++count) {
      while (end < values.size() && values[end] == values[begin]) ++end;
      number(values[begin]);
      number(static_cast<int64_t>(end - begin));
    }
    std::memcpy(bytes_.data() + count_at, &count, sizeof count);
  }
  void bytes(std::string_view value) { bytes_.append(value); }  // as they are
  void ids(const std::vector<int32_t>& values);  // of 2 bytes each where all fit, else of 4; before them which
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Reads them back in the same order.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T number() {
    T value;
    copy(&value, sizeof value);
    return value;
  }
  std::string text() {
    std::string value(static_cast<size_t>(length(1)), '\0');
    copy(value.data(), value.size());
    return value;
  }
  template <class T>
  std::vector<T> array() {
    std::vector<T> values(static_cast<size_t>(length(sizeof(T))));
    copy(values.data(), values.size() * sizeof(T));
    return values;
  }
  // FormatError where the runs are of more than `most` values: what they unfold to is bounded by what came.
  template <class T>
  std::vector<T> runs(size_t most) {
    std::vector<T> values;
    for (auto left = length(sizeof(T) + sizeof(int64_t)); left > 0; --left) {
      const T value = number<T>();
      values.insert(values.end(), run_length(most - values.size()), value);
    }
    return values;
  }
  std::vector<int32_t> ids();
  // One of an enum's values, as a byte; FormatError beyond `last`.
  template <class Enum>
  Enum choice(Enum last) {
    return static_cast<Enum>(choice_up_to(static_cast<uint8_t>(last)));
  }
  // A count of things that take at least element_bytes each: FormatError where so many cannot be left.
  int64_t length(size_t element_bytes);
  // Of an array or text (of 1) where it lies.
  std::string_view array_bytes(size_t element_bytes);
  size_t run_length(size_t most);
  bool flag() { return choice_up_to(1) == 1; }
  std::string_view left() const { return bytes_; }
  bool at_end() const { return bytes_.empty(); }

 private:
  void copy(void* to, size_t count);
  uint8_t choice_up_to(uint8_t last);

  std::string_view bytes_;  // what is left
};

void write_prompt(const Prompt& prompt, WireWriter& writer);
Prompt read_prompt(WireReader& reader);
void write_completions(const std::vector<Completion>& completions, WireWriter& writer);
inline constexpr size_t kEmptyCompletionBytes = 7 * sizeof(int64_t) + 3;
void write_completion(const Completion& completion, WireWriter& writer);
Completion read_completion(WireReader& reader);
std::vector<Completion> read_completions(WireReader& reader);
void write_group(const RolloutGroup& group, WireWriter& writer);
RolloutGroup read_group(WireReader& reader);

}  // namespace temper
