// safetensors files (https://huggingface.co/docs/safetensors): read by mmap, every claim of the header checked before a
// byte of data is touched, and written tensor by tensor. Broken files are FormatErrors that name file and tensor.
//
//   u64 little-endian: N, size of the header    (at most 100 MB)
//   N bytes: JSON {"__metadata__": {str: str}, "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]},
//   …},
//            padded with spaces so that the data starts at a multiple of 8
//   data: the tensors back to back, row-major, without holes; offsets count from here
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/files.h"

namespace temper {

struct SafetensorsEntry {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in bytes from the start of the data
  uint64_t end = 0;
};

// "F32", "BF16", "F16" (weights), "I32", "I64"; throws for others.
std::string_view safetensors_dtype_name(at::ScalarType dtype);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order of their data
  const SafetensorsEntry* find(std::string_view name) const;                 // nullptr if absent
  const std::unordered_map<std::string, std::string>& metadata() const { return metadata_; }
  const std::byte* bytes(const SafetensorsEntry& entry) const { return file_.data() + data_start_ + entry.begin; }
  at::Tensor read(std::string_view name) const;                 // a copy in the file's dtype
  void read_into(std::string_view name, at::Tensor out) const;  // converts to out's dtype; the shapes must be equal

 private:
  std::string path_;
  MappedFile file_;
  uint64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, std::string> metadata_;
};

// A file that is written tensor by tensor, in any order: byte for byte as the safetensors library does, sorted by name,
// metadata {"format": "pt"}. Not atomic: the caller writes into a folder that gets its name when it is complete.
struct SafetensorsShape {
  std::string name;
  std::vector<int64_t> shape;
};
class SafetensorsWriter {
 public:
  // Creates `path` for these tensors, all in `dtype`.
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsShape> tensors, at::ScalarType dtype);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  bool expects(std::string_view name) const { return offsets_.count(std::string(name)) > 0; }
  // On any device and of any type: it is converted on the way, so that a whole converted model is never in memory.
  void write(const std::string& name, const at::Tensor& tensor);
  // fsyncs. REQUIRES: every tensor was written.
  void finish();

 private:
  class OutputFile;

  at::ScalarType dtype_;
  std::unordered_map<std::string, uint64_t> offsets_;  // in the file, of those that are still to come
  std::unique_ptr<OutputFile> file_;
};

struct SafetensorsItem {
  std::string name;
  at::Tensor tensor;
};
void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items, at::ScalarType dtype);

}  // namespace temper
