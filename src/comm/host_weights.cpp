#include "comm/host_weights.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "comm/wire_format.h"
#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "core/log.h"

namespace temper {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kFileMagic = 0x31545748524D54;  // "TMRHWT1"
constexpr size_t kFixedBytes = 3 * sizeof(uint64_t);
constexpr size_t kPage = 4096;

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw IoError("{}: {} ({}). Workers of one host share their weights there; see [rollout].", path, what,
                std::strerror(errno));
}

std::string prefix() { return format("temper-{}-", ::getuid()); }

std::string header_of(const std::vector<WeightManifest>& manifests) {
  WireWriter header;
  header.number(static_cast<int64_t>(manifests.size()));
  for (const WeightManifest& manifest : manifests) header.text(encode(manifest));
  const std::string body = header.take();
  WireWriter whole;
  whole.number(kFileMagic);
  whole.number(static_cast<uint64_t>(body.size()));
  whole.number(xxh3_64(body));
  return whole.take() + body;
}

size_t data_offset(size_t header_bytes) { return (header_bytes + kPage - 1) / kPage * kPage; }

// A mapping of a file of weights, whose tensors begin at an offset.
class MappedWeights : public WeightMemory {
 public:
  MappedWeights(const std::string& path, int file, size_t size_bytes, size_t offset, int protection)
      : size_bytes_(size_bytes), offset_(offset) {
    void* address = ::mmap(nullptr, size_bytes, protection, MAP_SHARED, file, 0);
    if (address == MAP_FAILED) fail(path, "cannot be mapped");
    address_ = static_cast<std::byte*>(address);
  }
  ~MappedWeights() override { ::munmap(address_, size_bytes_); }
  std::byte* data() override { return address_ + offset_; }
  bool is_shared() const override { return true; }
  std::byte* start() { return address_; }

 private:
  std::byte* address_ = nullptr;
  size_t size_bytes_, offset_;
};

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

// weights.EPOCH.VERSION; nothing where it is another file.
std::optional<std::pair<int64_t, PolicyVersion>> version_of(const std::string& name) {
  constexpr std::string_view kStart = "weights.";
  const size_t dot = name.rfind('.');
  if (!name.starts_with(kStart) || dot < kStart.size()) return std::nullopt;
  std::pair<int64_t, PolicyVersion> found;
  const char* end = name.data() + name.size();
  const auto epoch = std::from_chars(name.data() + kStart.size(), name.data() + dot, found.first);
  const auto version = std::from_chars(name.data() + dot + 1, end, found.second);
  if (epoch.ec != std::errc() || epoch.ptr != name.data() + dot || version.ec != std::errc() || version.ptr != end)
    return std::nullopt;
  return found;
}

std::string name_of(int64_t epoch, PolicyVersion version) { return format("weights.{}.{}", epoch, version); }

// The version whose file it is, checked; nothing where the file went meanwhile.
std::unique_ptr<WeightSet> read_weights(const std::string& path, std::pair<int64_t, PolicyVersion> version,
                                        int64_t max_bytes) {
  const Descriptor file(path, O_RDONLY);
  struct stat info {};
  if (file.value() < 0 || ::fstat(file.value(), &info) != 0) return nullptr;
  const auto size = static_cast<size_t>(info.st_size);
  if (size < kFixedBytes) throw FormatError("{}: {} bytes.", path, size);
  // The header tells where the tensors begin: it is read first.
  std::string fixed(kFixedBytes, '\0');
  if (::pread(file.value(), fixed.data(), fixed.size(), 0) != static_cast<ssize_t>(fixed.size()))
    fail(path, "cannot be read");
  WireReader reader(fixed);
  const auto magic = reader.number<uint64_t>();
  const auto body_bytes = reader.number<uint64_t>();
  const auto checksum = reader.number<uint64_t>();
  if (magic != kFileMagic || body_bytes > size - kFixedBytes) throw FormatError("{}: is no file of weights.", path);
  const size_t offset = data_offset(kFixedBytes + body_bytes);
  auto memory = std::make_unique<MappedWeights>(path, file.value(), size, offset, PROT_READ);
  const std::string_view body(reinterpret_cast<const char*>(memory->start()) + kFixedBytes, body_bytes);
  if (xxh3_64(body) != checksum) throw FormatError("{}: its header is damaged.", path);
  WireReader header(body);
  std::vector<WeightManifest> manifests;
  for (auto left = header.length(sizeof(int64_t)); left > 0; --left)
    manifests.push_back(decode_weight_manifest(header.text()));
  if (manifests.empty() || version != std::pair(manifests[0].epoch, manifests[0].version))
    throw FormatError("{}: holds another version than its name says.", path);
  WeightLayout layout(manifests, max_bytes);
  if (offset > size || static_cast<size_t>(layout.size_bytes()) != size - offset)
    throw FormatError("{}: has {} bytes, {} of weights were expected.", path, size, layout.size_bytes());
  const size_t num_ranks = manifests.size();
  auto set = std::make_unique<WeightSet>(std::move(manifests), std::move(layout), std::move(memory));
  for (size_t rank = 0; rank < num_ranks; ++rank) set->check(rank);
  return set;
}

bool is_same_file(int descriptor, const std::string& path) {
  struct stat held {
  }, named{};
  return ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino;
}

// REQUIRES: its `users` is held whole. That goes last: who opens it before it goes cannot hold it, and who makes a new
// one afterwards keeps the folder.
void remove_folder(const fs::path& folder) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename() != "users") fs::remove(entry.path(), ignored);
  fs::remove(folder / "users", ignored);
  fs::remove(folder, ignored);
}

}  // namespace

HostWeights::HostWeights(const std::string& dir, const std::string& run_id) {
  const auto is_plain = [](char letter) {
    return std::isalnum(static_cast<unsigned char>(letter)) || letter == '-' || letter == '_' || letter == '.';
  };
  if (run_id.empty() || !std::all_of(run_id.begin(), run_id.end(), is_plain))
    throw ConfigError("weights: '{}' cannot name a folder in {}. Use letters, digits, '-', '_' and '.'.", run_id, dir);
  remove_unused_host_weights(dir);
  folder_ = dir + "/" + prefix() + run_id;
  while (!hold()) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // another process cleans up
  Descriptor fetch(folder_ + "/fetch", O_RDWR | O_CREAT);
  if (fetch.value() < 0) fail(folder_ + "/fetch", "cannot be opened");
  fetch_ = fetch.release();
}

// False where another process is removing the folder: try again.
bool HostWeights::hold() {
  if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) fail(folder_, "cannot be made");
  struct stat info {};
  if (::lstat(folder_.c_str(), &info) != 0) return false;
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::getuid() || (info.st_mode & 077) != 0)
    throw IoError("{}: is not a folder of this user alone. Remove it, or choose another [run] name.", folder_);
  const std::string path = folder_ + "/users";
  Descriptor users(path, O_RDWR | O_CREAT);
  if (users.value() < 0) {
    if (errno == ENOENT) return false;
    fail(path, "cannot be opened");
  }
  if (::flock(users.value(), LOCK_SH | LOCK_NB) != 0 || !is_same_file(users.value(), path)) return false;
  users_ = users.release();
  return true;
}

HostWeights::~HostWeights() {
  end();
  ::close(fetch_);
  // Whoever gets it whole is the last; who does not, has it no more.
  if (::flock(users_, LOCK_EX | LOCK_NB) == 0) remove_folder(folder_);
  ::close(users_);
}

std::unique_ptr<WeightSet> HostWeights::find(int64_t epoch, PolicyVersion newer_than, int64_t max_bytes) {
  std::optional<std::pair<int64_t, PolicyVersion>> newest;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error))
    if (const auto version = version_of(entry.path().filename());
        version && version->first == epoch && version->second > newer_than && (!newest || version > newest))
      newest = version;
  if (!newest) return nullptr;
  const std::string path = folder_ + "/" + name_of(newest->first, newest->second);
  try {
    return read_weights(path, *newest, max_bytes);
  } catch (const FormatError& broken) {  // the ranks have it whole
    log_warning("weights shared by this host's workers are damaged and fetched anew: {}", broken.what());
    fs::remove(path, error);
    return nullptr;
  }
}

bool HostWeights::try_begin() {
  if (!fetching_) fetching_ = ::flock(fetch_, LOCK_EX | LOCK_NB) == 0;
  return fetching_;
}

std::unique_ptr<WeightMemory> HostWeights::create(const std::vector<WeightManifest>& manifests, int64_t size_bytes) {
  TEMPER_CHECK(fetching_, "{}: weights without the right to fetch them", folder_);
  const std::string path = folder_ + "/incoming", header = header_of(manifests);
  const size_t offset = data_offset(header.size()), size = offset + static_cast<size_t>(size_bytes);
  ::unlink(path.c_str());  // a dead process's: somebody may still map it, so it is not written over
  const Descriptor file(path, O_RDWR | O_CREAT | O_EXCL);
  if (file.value() < 0) fail(path, "cannot be made");
  // Reserved now: else the first write beyond what there is would be a SIGBUS.
  errno = ::posix_fallocate(file.value(), 0, static_cast<off_t>(size));
  if (errno != 0) {
    const int why = errno;
    ::unlink(path.c_str());
    errno = why;
    fail(path, "has no room for the weights");
  }
  auto memory = std::make_unique<MappedWeights>(path, file.value(), size, offset, PROT_READ | PROT_WRITE);
  std::memcpy(memory->start(), header.data(), header.size());
  return memory;
}

void HostWeights::commit(int64_t epoch, PolicyVersion version) {
  TEMPER_CHECK(fetching_, "{}: weights without the right to fetch them", folder_);
  const std::string path = folder_ + "/" + name_of(epoch, version);
  if (::rename((folder_ + "/incoming").c_str(), path.c_str()) != 0) fail(path, "cannot be given its name");
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored))
    if (version_of(entry.path().filename()) && entry.path() != path) fs::remove(entry.path(), ignored);
}

void HostWeights::end() {
  if (std::exchange(fetching_, false)) ::flock(fetch_, LOCK_UN);
}

// By the time of the last change of `fetch`.
void HostWeights::note_progress() { ::futimens(fetch_, nullptr); }

int64_t HostWeights::progress() const {
  struct stat info {};
  ::fstat(fetch_, &info);
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

int64_t remove_unused_host_weights(const std::string& dir) {
  int64_t removed = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error)) {
    if (!entry.path().filename().string().starts_with(prefix())) continue;
    const Descriptor users(entry.path().string() + "/users", O_RDWR);
    if (users.value() < 0 || ::flock(users.value(), LOCK_EX | LOCK_NB) != 0) continue;
    remove_folder(entry.path());
    ++removed;
  }
  return removed;
}

}  // namespace temper
