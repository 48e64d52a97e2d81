#include "checkpoint/manifest.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "checkpoint/base64.h"
#include "core/hash.h"

namespace temper {
namespace {

using Json = nlohmann::ordered_json;

// "checksum":"<32 digits>"} at the very end of the file.
constexpr std::string_view kChecksumKey = "\"checksum\":\"";
constexpr size_t kTailBytes = kChecksumKey.size() + 32 + 2;
constexpr char kFormatName[] = "temper-checkpoint";

std::string dump(const Json& value) {
  try {
    return value.dump();
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError("A checkpoint's names must be valid UTF-8 text ({}). Rename the run, the stage or the tensor.",
                      error.what());
  }
}

// Text as it is, other bytes as {"base64": "…"}.
Json encode_bytes(const std::string& bytes) {
  try {
    Json text = bytes;
    (void)text.dump();
    return text;
  } catch (const nlohmann::json::exception&) {
    return Json{{"base64", encode_base64(bytes)}};
  }
}

std::string hex_blocks(const std::vector<uint64_t>& blocks) {
  std::string text;
  text.reserve(blocks.size() * 16);
  for (uint64_t block : blocks) text += hex64(block);
  return text;
}

Json encode_file(const FileRecord& file) {
  return {{"name", file.name},
          {"size", file.size_bytes},
          {"xxh3_128", file.xxh3_128},
          {"xxh3_64_blocks", hex_blocks(file.blocks)}};
}

Json encode_tensor(const TensorRecord& tensor) {
  Json boxes = Json::array();
  for (const Box& box : tensor.boxes)
    boxes.push_back(Json{{"shard", box.shard}, {"offset", box.offset}, {"start", box.start}, {"size", box.size}});
  return {
      {"name", tensor.name}, {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"boxes", std::move(boxes)}};
}

// Reads the parsed JSON; every complaint names the manifest and the place in it.
class Decoder {
 public:
  explicit Decoder(const std::string& path) : path_(path) {}

  template <class... Args>
  [[noreturn]] void fail(std::string_view text, const Args&... args) const {
    throw FormatError("{}: {}. The file was not written by this program; use another checkpoint.", path_,
                      format(text, args...));
  }
  const Json& member(const Json& object, const char* key, const std::string& where) const {
    if (!object.is_object()) fail("{} is not an object", where);
    const auto found = object.find(key);
    if (found == object.end()) fail("{} has no \"{}\"", where, key);
    return *found;
  }
  const Json& array(const Json& object, const char* key, const std::string& where) const {
    const Json& value = member(object, key, where);
    if (!value.is_array()) fail("{}.{} is not a list", where, key);
    return value;
  }
  // 0 <= value <= 2^62
  int64_t count(const Json& value, const std::string& where) const {
    constexpr int64_t kMax = int64_t{1} << 62;
    if (!value.is_number_integer()) fail("{} is not an integer", where);
    if (value.is_number_unsigned() ? value.get<uint64_t>() > static_cast<uint64_t>(kMax) : value.get<int64_t>() < 0)
      fail("{} is {}, outside 0 to 2^62", where, value.dump());
    return value.get<int64_t>();
  }
  int64_t count(const Json& object, const char* key, const std::string& where) const {
    return count(member(object, key, where), where + "." + key);
  }
  std::string text(const Json& object, const char* key, const std::string& where) const {
    const Json& value = member(object, key, where);
    if (!value.is_string()) fail("{}.{} is not a text", where, key);
    return value.get<std::string>();
  }
  std::string bytes(const Json& value, const std::string& where) const {
    if (value.is_string()) return value.get<std::string>();
    std::string decoded;
    if (!value.is_object() || !value.contains("base64") || !value["base64"].is_string() ||
        !decode_base64(value["base64"].get<std::string>(), &decoded))
      fail("{} is neither a text nor {\"base64\": …}", where);
    return decoded;
  }
  std::vector<int64_t> counts(const Json& object, const char* key, const std::string& where) const {
    constexpr size_t kMaxDims = 32;  // HDF5's limit
    const Json& list = array(object, key, where);
    if (list.size() > kMaxDims)
      fail("{}.{} has {} dimensions, at most {} are possible", where, key, list.size(), kMaxDims);
    std::vector<int64_t> values;
    for (const Json& value : list) values.push_back(count(value, where + "." + key));
    return values;
  }

 private:
  const std::string& path_;
};

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// nlohmann keeps the last of two members with one name, another parser the first: neither is believed.
Json parse_without_duplicates(std::string_view bytes, const Decoder& decode) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int, nlohmann::json::parse_event_t event, Json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(parsed.get<std::string>()).second)
      decode.fail("the name {} occurs twice in one object", parsed.dump());
    return true;
  };
  try {
    return Json::parse(bytes, watch);
  } catch (const nlohmann::json::exception& error) {
    decode.fail("not valid JSON ({})", error.what());
  }
}

FileRecord decode_file(const Decoder& decode, const Json& json, const std::string& where) {
  FileRecord file;
  file.name = decode.text(json, "name", where);
  file.size_bytes = decode.count(json, "size", where);
  file.xxh3_128 = decode.text(json, "xxh3_128", where);
  if (file.xxh3_128.size() != 32 || !is_hex(file.xxh3_128))
    decode.fail("{}.xxh3_128 is not 32 hexadecimal digits", where);
  const std::string blocks = decode.text(json, "xxh3_64_blocks", where);
  const int64_t num_blocks = (file.size_bytes + kBlockBytes - 1) / kBlockBytes;
  if (static_cast<int64_t>(blocks.size()) != num_blocks * 16 || !is_hex(blocks))
    decode.fail("{} has {} bytes but not 16 hexadecimal digits for each of {} blocks", where, file.size_bytes,
                num_blocks);
  for (int64_t i = 0; i < num_blocks; ++i)
    file.blocks.push_back(std::stoull(blocks.substr(static_cast<size_t>(i) * 16, 16), nullptr, 16));
  return file;
}

// Shards 0 to n - 1, then global.h5: nothing else, so that no name leads out of the folder.
void decode_files(const Decoder& decode, const Json& root, Manifest* manifest) {
  const Json& list = decode.array(root, "files", "manifest");
  for (size_t i = 0; i < list.size(); ++i) {
    manifest->files.push_back(decode_file(decode, list[i], format("files[{}]", i)));
    const std::string wanted = i + 1 == list.size() ? kGlobalName : shard_name(static_cast<int>(i));
    if (manifest->files[i].name != wanted)
      decode.fail("files[{}] is named {}, {} belongs there", i, Json(manifest->files[i].name).dump(), wanted);
  }
  if (list.size() < 2)
    decode.fail("it lists {} files, at least {} and {} are needed", list.size(), shard_name(0), kGlobalName);
}

TensorRecord decode_tensor(const Decoder& decode, const Json& json, size_t index) {
  TensorRecord tensor;
  tensor.name = decode.text(json, "name", format("tensors[{}]", index));
  const std::string where = "tensor " + tensor.name;
  const std::string fault = find_name_fault(tensor.name);
  if (!fault.empty()) decode.fail("tensors[{}]: the name {} {}", index, Json(tensor.name).dump(), fault);
  const std::string dtype = decode.text(json, "dtype", where);
  if (!parse_dtype(dtype, &tensor.dtype)) decode.fail("{} has the unknown dtype {}", where, Json(dtype).dump());
  tensor.shape = decode.counts(json, "shape", where);
  const int64_t elements = num_elements(tensor.shape);
  if (elements < 0 || elements > (int64_t{1} << 59)) decode.fail("{} has more than 2^59 elements", where);
  for (const Json& item : decode.array(json, "boxes", where)) {
    Box box;
    const int64_t shard = decode.count(item, "shard", where);
    if (shard > 99999) decode.fail("{} lies in shard {}, above 99999", where, shard);
    box.shard = static_cast<int32_t>(shard);
    box.offset = decode.count(item, "offset", where);
    box.start = decode.counts(item, "start", where);
    box.size = decode.counts(item, "size", where);
    tensor.boxes.push_back(std::move(box));
  }
  return tensor;
}

void check_coverage(const Decoder& decode, const TensorRecord& tensor) {
  const std::string hole = find_coverage_fault(tensor);
  if (!hole.empty()) decode.fail("tensor {}: {}", tensor.name, hole);
}

// Boxes lie inside their files and share no byte: the tensors together are never larger than the files are.
void check_placement(const Decoder& decode, const Manifest& manifest) {
  std::vector<std::tuple<int32_t, int64_t, int64_t, const TensorRecord*>> ranges;  // shard, begin, end
  for (const TensorRecord& tensor : manifest.tensors)
    for (const Box& box : tensor.boxes) {
      if (box.shard + 1 >= static_cast<int64_t>(manifest.files.size()))
        decode.fail("tensor {} lies in shard {}, which is not listed", tensor.name, box.shard);
      const int64_t size_bytes = num_elements(box.size) * dtype_size_bytes(tensor.dtype);
      const int64_t file_bytes = manifest.files[static_cast<size_t>(box.shard)].size_bytes;
      if (size_bytes > file_bytes || box.offset > file_bytes - size_bytes)
        decode.fail("tensor {} takes {} bytes from byte {} of {}, which has {}", tensor.name, size_bytes, box.offset,
                    shard_name(box.shard), file_bytes);
      ranges.emplace_back(box.shard, box.offset, box.offset + size_bytes, &tensor);
    }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    const auto& [shard, begin, end, tensor] = ranges[i];
    const auto& [last_shard, last_begin, last_end, last_tensor] = ranges[i - 1];
    if (shard == last_shard && begin < last_end)
      decode.fail("tensors {} and {} share bytes of {}", last_tensor->name, tensor->name, shard_name(shard));
  }
}

}  // namespace

std::string shard_name(int shard) {
  char text[32];
  std::snprintf(text, sizeof text, "shard_%05d.h5", shard);
  return text;
}

std::string step_name(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step_%06lld", static_cast<long long>(step));
  return text;
}

int64_t parse_step_name(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  if (name.compare(0, kPrefix.size(), kPrefix) != 0 || name.size() > kPrefix.size() + 18) return -1;
  int64_t step = 0;
  for (size_t i = kPrefix.size(); i < name.size(); ++i) {
    if (name[i] < '0' || name[i] > '9') return -1;
    step = step * 10 + (name[i] - '0');
  }
  return step_name(step) == name ? step : -1;
}

std::string find_name_fault(const std::string& name) {
  constexpr size_t kMaxNameBytes = 1024;
  if (name.empty()) return "is empty";
  if (name.size() > kMaxNameBytes) return format("has {} bytes, at most {} are allowed", name.size(), kMaxNameBytes);
  for (unsigned char c : name)
    if (c < 0x21 || c == 0x7f || c == '#' || c == '\\') return "holds a blank, a control character, # or a backslash";
  size_t begin = 0;
  while (begin <= name.size()) {
    const size_t slash = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, slash - begin);
    if (part.empty() || part == "." || part == "..") return "has an empty part, \".\" or \"..\" between slashes";
    begin = slash + 1;
  }
  return "";
}

std::string encode_manifest(const Manifest& manifest) {
  const CheckpointHeader& header = manifest.header;
  std::string out = "{";
  const auto add = [&](const char* key, const Json& value) { out += format("\"{}\":{},\n", key, dump(value)); };
  add("format", kFormatName);
  add("format_version", kFormatVersion);
  add("writer", manifest.writer);
  add("run", header.run);
  add("stage", header.stage);
  add("epoch", header.epoch);
  add("step", header.step);
  add("policy_version", header.policy_version);
  add("time", header.time);
  Json mesh = {{"replicas", manifest.mesh.replicas},
               {"shard", manifest.mesh.shard},
               {"tensor_parallel", manifest.mesh.tensor_parallel}};
  if (manifest.mesh.nodes > 1) mesh["nodes"] = manifest.mesh.nodes;
  add("mesh", mesh);
  add("data_hash", header.data_hash);
  add("config", encode_bytes(header.config_toml));
  add("model", encode_bytes(header.model_json));
  Json blobs = Json::object();
  for (const auto& [name, bytes] : header.blobs) blobs[name] = encode_bytes(bytes);
  add("blobs", blobs);

  std::vector<std::string> lines;
  for (const FileRecord& file : manifest.files) lines.push_back(dump(encode_file(file)));
  out += "\"files\":[\n" + join(lines, ",\n") + "],\n";
  lines.clear();
  for (const TensorRecord& tensor : manifest.tensors) lines.push_back(dump(encode_tensor(tensor)));
  out += "\"tensors\":[\n" + join(lines, ",\n") + "],\n";
  const std::string checksum = xxh3_128_hex(out);
  return out + std::string(kChecksumKey) + checksum + "\"}";
}

std::string encode_shard_report(const ShardReport& report) {
  Json tensors = Json::array();
  for (const TensorRecord& tensor : report.tensors) tensors.push_back(encode_tensor(tensor));
  return dump(Json{{"file", encode_file(report.file)}, {"tensors", std::move(tensors)}});
}

ShardReport parse_shard_report(const std::string& text) {
  const std::string source = "a rank's report of its shard";
  const Decoder decode(source);
  const Json root = parse_without_duplicates(text, decode);
  ShardReport report;
  report.file = decode_file(decode, decode.member(root, "file", "report"), "file");
  for (const Json& json : decode.array(root, "tensors", "report"))
    report.tensors.push_back(decode_tensor(decode, json, report.tensors.size()));
  return report;
}

Manifest parse_manifest(std::string_view bytes, const std::string& path) {
  if (bytes.size() < kTailBytes)
    throw FormatError("{}: cut short, it has {} bytes. Use another checkpoint.", path, bytes.size());
  const std::string_view body = bytes.substr(0, bytes.size() - kTailBytes);
  const std::string_view tail = bytes.substr(body.size());
  const std::string checksum = xxh3_128_hex(body);
  const std::string wanted_tail = std::string(kChecksumKey) + checksum + "\"}";
  if (tail != wanted_tail)
    throw FormatError(
        "{}: corrupt, its {} bytes do not give the checksum at its end (they give {}). Use another checkpoint.", path,
        bytes.size(), checksum);

  const Decoder decode(path);
  const Json root = parse_without_duplicates(bytes, decode);
  if (decode.text(root, "format", "manifest") != kFormatName) decode.fail("its format is not {}", kFormatName);
  Manifest manifest;
  manifest.writer = decode.text(root, "writer", "manifest");
  const int64_t version = decode.count(root, "format_version", "manifest");
  if (version != kFormatVersion)
    throw FormatError(
        "{}: written by {} in checkpoint format version {}; this program, temper {}, reads version {}. Use a "
        "program as new as the checkpoint.",
        path, manifest.writer, version, TEMPER_VERSION, kFormatVersion);
  CheckpointHeader& header = manifest.header;
  header.run = decode.text(root, "run", "manifest");
  header.stage = decode.text(root, "stage", "manifest");
  header.epoch = decode.count(root, "epoch", "manifest");
  header.step = decode.count(root, "step", "manifest");
  header.policy_version = decode.count(root, "policy_version", "manifest");
  const Json& time = decode.member(root, "time", "manifest");
  if (!time.is_number()) decode.fail("time is not a number");
  header.time = time.get<double>();
  const Json& mesh = decode.member(root, "mesh", "manifest");
  manifest.mesh = {decode.count(mesh, "replicas", "mesh"), decode.count(mesh, "shard", "mesh"),
                   decode.count(mesh, "tensor_parallel", "mesh"),
                   mesh.contains("nodes") ? decode.count(mesh, "nodes", "mesh") : 1};
  header.data_hash = decode.text(root, "data_hash", "manifest");
  header.config_toml = decode.bytes(decode.member(root, "config", "manifest"), "config");
  header.model_json = decode.bytes(decode.member(root, "model", "manifest"), "model");
  const Json& blobs = decode.member(root, "blobs", "manifest");
  if (!blobs.is_object()) decode.fail("blobs is not an object");
  for (const auto& [name, value] : blobs.items()) header.blobs[name] = decode.bytes(value, "blobs." + name);

  decode_files(decode, root, &manifest);
  std::set<std::string> names;
  for (const Json& json : decode.array(root, "tensors", "manifest")) {
    manifest.tensors.push_back(decode_tensor(decode, json, manifest.tensors.size()));
    check_coverage(decode, manifest.tensors.back());
    if (!names.insert(manifest.tensors.back().name).second)
      decode.fail("the tensor {} is listed twice", manifest.tensors.back().name);
  }
  check_placement(decode, manifest);
  return manifest;
}

}  // namespace temper
