#include "model/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"

namespace temper {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is mapped as it lies");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kMaxElements = uint64_t{1} << 48;

struct DtypeName {
  at::ScalarType dtype;
  std::string_view name;
};
constexpr DtypeName kDtypes[] = {
    {at::kFloat, "F32"}, {at::kBFloat16, "BF16"}, {at::kHalf, "F16"}, {at::kInt, "I32"}, {at::kLong, "I64"}};

uint64_t header_size(const std::string& path, const MappedFile& file) {
  if (file.size_bytes() < 8)
    throw FormatError(
        "{}: has {} bytes, a safetensors file has at least 8. It is truncated or another format: fetch it again.", path,
        file.size_bytes());
  uint64_t size = 0;
  std::memcpy(&size, file.data(), 8);
  if (size > kMaxHeaderBytes || size > file.size_bytes() - 8)
    throw FormatError(
        "{}: the header claims {} bytes, the file has {} after its first 8. It is truncated or not a safetensors "
        "file: fetch it again.",
        path, size, file.size_bytes() - 8);
  return size;
}

nlohmann::json parse_header(const std::string& path, std::string_view text) {
  std::set<std::string> names;
  std::string duplicate;
  const auto watch_names = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1 && !names.insert(parsed.get<std::string>()).second)
      duplicate = parsed.get<std::string>();
    return true;
  };
  nlohmann::json header;
  try {
    header = nlohmann::json::parse(text, watch_names);
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("{}: the header is not UTF-8 JSON ({}). The file is damaged or another format: fetch it again.",
                      path, error.what());
  }
  if (!header.is_object())
    throw FormatError(
        "{}: the header holds {}, a JSON object is needed. The file is damaged or another format: fetch it again.",
        path, header.type_name());
  if (!duplicate.empty())
    throw FormatError("{}: tensor {} is listed twice in the header. The file is damaged: fetch or export it again.",
                      path, duplicate);
  return header;
}

std::vector<uint64_t> unsigned_list(const nlohmann::json& entry, const char* key, const std::string& where) {
  if (!entry.is_object() || !entry.contains(key) || !entry.at(key).is_array())
    throw FormatError("{}: has no list {}. The file is damaged: fetch it again.", where, key);
  std::vector<uint64_t> values;
  for (const auto& value : entry.at(key)) {
    if (!value.is_number_unsigned())
      throw FormatError("{}: {} is {}, whole numbers from 0 are needed. The file is damaged: fetch it again.", where,
                        key, entry.at(key).dump());
    values.push_back(value.get<uint64_t>());
  }
  return values;
}

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const nlohmann::json& json,
                             uint64_t data_bytes) {
  const std::string where = format("{}: tensor {}", path, name);
  SafetensorsEntry entry;
  entry.name = name;
  const std::vector<uint64_t> shape = unsigned_list(json, "shape", where);
  const std::vector<uint64_t> offsets = unsigned_list(json, "data_offsets", where);
  const std::string dtype =
      json.contains("dtype") && json.at("dtype").is_string() ? json.at("dtype").get<std::string>() : "missing";
  const DtypeName* known = nullptr;
  for (const DtypeName& candidate : kDtypes)
    if (candidate.name == dtype) known = &candidate;
  if (known == nullptr)
    throw FormatError(
        "{}: dtype is {}, supported are F32, BF16 and F16 for weights (I32, I64 for other data). Take the model in "
        "one of these.",
        where, dtype);
  entry.dtype = known->dtype;

  uint64_t num_elements = 1;
  for (const uint64_t size : shape) {
    if (size > kMaxElements || (size > 0 && num_elements > kMaxElements / size))
      throw FormatError("{}: shape [{}] is beyond any file. The file is damaged: fetch it again.", where, join(shape));
    num_elements *= size;
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes)
    throw FormatError(
        "{}: data_offsets [{}] do not lie within the {} bytes of data. The file is truncated or damaged: fetch it "
        "again.",
        where, join(offsets), data_bytes);
  entry.begin = offsets[0];
  entry.end = offsets[1];
  const uint64_t needed = num_elements * at::elementSize(entry.dtype);
  if (entry.end - entry.begin != needed)
    throw FormatError("{}: {} of shape [{}] takes {} bytes, data_offsets span {}. The file is damaged: fetch it again.",
                      where, dtype, join(shape), needed, entry.end - entry.begin);
  return entry;
}

// The tensors must cover the data exactly: no hole, no overlap, nothing after the last.
void check_coverage(const std::string& path, const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != end)
      throw FormatError(
          "{}: tensor {} begins at byte {} of the data, the one before it ends at {}: they {}. The file is damaged: "
          "fetch or export it again.",
          path, entry.name, entry.begin, end, entry.begin < end ? "overlap" : "leave a hole");
    end = entry.end;
  }
  if (end != data_bytes)
    throw FormatError(
        "{}: the tensors end at byte {} of the data, the file holds {}. The file is damaged: fetch or export it "
        "again.",
        path, end, data_bytes);
}

// A file being written; errors name the path.

}  // namespace

std::string_view safetensors_dtype_name(at::ScalarType dtype) {
  for (const DtypeName& known : kDtypes)
    if (known.dtype == dtype) return known.name;
  TEMPER_CHECK(false, "dtype {} is not written to safetensors", c10::toString(dtype));
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), file_(path) {
  const uint64_t header_bytes = header_size(path, file_);
  data_start_ = 8 + header_bytes;
  const uint64_t data_bytes = file_.size_bytes() - data_start_;
  const nlohmann::json header = parse_header(path, {reinterpret_cast<const char*>(file_.data()) + 8, header_bytes});
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, text] : value.items())
        if (text.is_string()) metadata_.emplace(key, text.get<std::string>());
    } else {
      entries_.push_back(parse_entry(path, name, value, data_bytes));
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_coverage(path, entries_, data_bytes);
  for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &entries_[found->second];
}

at::Tensor SafetensorsFile::read(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr)
    throw FormatError("{}: tensor {} is missing. The file is another model's or incomplete: fetch it again.", path_,
                      name);
  at::Tensor copy = at::empty(entry->shape, entry->dtype);
  if (copy.numel() > 0) std::memcpy(copy.data_ptr(), bytes(*entry), entry->end - entry->begin);
  return copy;
}

// What is copied need not stay in memory beside its copy: the pages wholly inside come from the file again if wanted.
static void drop_pages(const std::byte* data, uint64_t size_bytes) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size_bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void SafetensorsFile::read_into(std::string_view name, at::Tensor out) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr)
    throw FormatError("{}: tensor {} is missing. The file is another model's or incomplete: fetch it again.", path_,
                      name);
  if (out.sizes() != at::IntArrayRef(entry->shape))
    throw FormatError(
        "{}: tensor {} has shape [{}], the model's config.json makes it [{}]. Pair the weights with their own "
        "config.json.",
        path_, name, join(entry->shape), join(out.sizes()));
  if (out.numel() == 0) return;
  const std::byte* data = bytes(*entry);
  if (reinterpret_cast<uintptr_t>(data) % at::elementSize(entry->dtype) !=
      0) {  // a writer that does not pad its header
    out.copy_(read(name));
    return;
  }
  out.copy_(at::from_blob(const_cast<std::byte*>(data), entry->shape, at::TensorOptions().dtype(entry->dtype)));
  drop_pages(data, entry->end - entry->begin);
}

class SafetensorsWriter::OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0)
      throw IoError("{}: cannot be created ({}). Check that the folder exists and is writable.", path_,
                    std::strerror(errno));
  }
  ~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write_at(uint64_t offset, const void* data, size_t size_bytes) {
    auto* bytes = static_cast<const char*>(data);
    while (size_bytes > 0) {
      const ssize_t written = ::pwrite(descriptor_, bytes, size_bytes, static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail();
      bytes += written;
      offset += static_cast<uint64_t>(written);
      size_bytes -= static_cast<size_t>(written);
    }
  }
  void sync_and_close() {
    if (::fsync(descriptor_) != 0) fail();
    if (::close(std::exchange(descriptor_, -1)) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw IoError("{}: writing failed ({}). Free some space or choose another folder.", path_, std::strerror(errno));
  }

  std::string path_;
  int descriptor_;
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsShape> tensors,
                                     at::ScalarType dtype)
    : dtype_(dtype) {
  std::sort(tensors.begin(), tensors.end(),
            [](const SafetensorsShape& a, const SafetensorsShape& b) { return a.name < b.name; });
  nlohmann::ordered_json header;
  header["__metadata__"]["format"] = "pt";
  uint64_t end = 0;
  for (const SafetensorsShape& tensor : tensors) {
    const uint64_t begin = end;
    end += static_cast<uint64_t>(c10::multiply_integers(tensor.shape)) * at::elementSize(dtype);
    TEMPER_CHECK(offsets_.emplace(tensor.name, begin).second, "tensor {} is given twice", tensor.name);
    header[tensor.name] = {
        {"dtype", safetensors_dtype_name(dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t header_bytes = text.size();
  for (auto& [name, offset] : offsets_) offset += sizeof header_bytes + header_bytes;

  file_ = std::make_unique<OutputFile>(path);
  file_->write_at(0, &header_bytes, sizeof header_bytes);
  file_->write_at(sizeof header_bytes, text.data(), text.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto place = offsets_.find(name);
  TEMPER_CHECK(place != offsets_.end(), "tensor {} has no place in the file, or was written", name);
  const at::Tensor converted = tensor.detach().to(at::kCPU, dtype_).contiguous();
  file_->write_at(place->second, converted.data_ptr(), converted.nbytes());
  offsets_.erase(place);
}

void SafetensorsWriter::finish() {
  TEMPER_CHECK(offsets_.empty(), "{} tensors were not written, {} among them", offsets_.size(),
               offsets_.empty() ? "" : offsets_.begin()->first);
  file_->sync_and_close();
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items, at::ScalarType dtype) {
  std::vector<SafetensorsShape> shapes;
  for (const SafetensorsItem& item : items) shapes.push_back({item.name, item.tensor.sizes().vec()});
  SafetensorsWriter writer(path, std::move(shapes), dtype);
  for (const SafetensorsItem& item : items) writer.write(item.name, item.tensor);
  writer.finish();
}

}  // namespace temper
