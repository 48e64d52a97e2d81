#include "checkpoint/data_file.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "core/hash.h"

namespace temper {
namespace {

struct Region {
  int64_t begin;  // in the file
  int64_t end;
  const char* data;
};

// What the file will hold, without holding it: metadata pages, pieces of tensors, zeros between.
class FileImage {
 public:
  FileImage(const Hdf5Skeleton& skeleton, const std::vector<WritePiece>& pieces) : skeleton_(skeleton) {
    for (size_t i = 0; i < pieces.size(); ++i) {
      const int64_t size_bytes = num_elements(pieces[i].box->size) * dtype_size_bytes(pieces[i].tensor->dtype);
      regions_.push_back({skeleton.offsets[i], skeleton.offsets[i] + size_bytes, pieces[i].data});
    }
    std::sort(regions_.begin(), regions_.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
    for (size_t i = 0; i < regions_.size(); ++i) {
      const int64_t limit = i + 1 < regions_.size() ? regions_[i + 1].begin : skeleton.size_bytes;
      TEMPER_CHECK(regions_[i].end <= limit, "HDF5 gave two data sets one place at byte {}", limit);
    }
  }

  int64_t num_blocks() const { return (skeleton_.size_bytes + kBlockBytes - 1) / kBlockBytes; }
  int64_t block_size(int64_t block) const { return std::min(kBlockBytes, skeleton_.size_bytes - block * kBlockBytes); }

  // The block's bytes: in the tensor itself if that holds them all, else put together in `scratch`.
  const char* block(int64_t index, std::vector<char>* scratch) const {
    const int64_t begin = index * kBlockBytes;
    const int64_t end = begin + block_size(index);
    auto region = std::upper_bound(regions_.begin(), regions_.end(), begin,
                                   [](int64_t position, const Region& r) { return position < r.end; });
    if (region != regions_.end() && region->begin <= begin && region->end >= end)
      return region->data + (begin - region->begin);
    scratch->assign(static_cast<size_t>(end - begin), '\0');
    const auto copy = [&](int64_t from, int64_t to, const char* data) {
      const int64_t low = std::max(from, begin);
      const int64_t high = std::min(to, end);
      if (low < high)
        std::memcpy(scratch->data() + (low - begin), data + (low - from), static_cast<size_t>(high - low));
    };
    constexpr int64_t kPage = Hdf5Skeleton::kPageBytes;
    for (auto page = skeleton_.pages.lower_bound(begin / kPage);
         page != skeleton_.pages.end() && page->first * kPage < end; ++page)
      copy(page->first * kPage, (page->first + 1) * kPage, page->second.data());
    // After the pages: small pieces share a page with metadata.
    for (; region != regions_.end() && region->begin < end; ++region) copy(region->begin, region->end, region->data);
    return scratch->data();
  }

 private:
  const Hdf5Skeleton& skeleton_;
  std::vector<Region> regions_;
};

void write_blocks(const FileImage& image, File& file, FileSystem& files) {
  // The disk starts on what is written while the rest is still being copied, instead of at fsync.
  constexpr int64_t kWritebackBlocks = 32;
  std::vector<char> scratch;
  for (int64_t i = 0; i < image.num_blocks(); ++i) {
    file.write_at(i * kBlockBytes, image.block(i, &scratch), static_cast<size_t>(image.block_size(i)));
    if ((i + 1) % kWritebackBlocks == 0)
      files.start_writeback(file.descriptor(), (i + 1 - kWritebackBlocks) * kBlockBytes,
                            kWritebackBlocks * kBlockBytes);
  }
}

void hash_blocks(const FileImage& image, FileRecord* record) {
  Xxh3Stream whole;
  std::vector<char> scratch;
  for (int64_t i = 0; i < image.num_blocks(); ++i) {
    const char* bytes = image.block(i, &scratch);
    const auto size_bytes = static_cast<size_t>(image.block_size(i));
    record->blocks.push_back(xxh3_64(bytes, size_bytes));
    whole.update(bytes, size_bytes);
  }
  record->xxh3_128 = whole.digest_hex();
}

// Runs `work` on `count` threads (the caller is one) and rethrows the first failure.
template <class F>
void run_on_threads(int count, F&& work) {
  std::mutex mutex;
  std::exception_ptr failure;  // guarded by mutex
  const auto guarded = [&](int index) {
    try {
      work(index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < count; ++i) others.emplace_back(guarded, i);
  guarded(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

constexpr int64_t kThreadingPaysBytes = 8 * kBlockBytes;

}  // namespace

std::string describe(const Damage& problem) {
  if (problem.block < 0) return format("{}: {}", problem.file, problem.text);
  return format("{}, block {} (bytes {} and following): {}", problem.file, problem.block, problem.block * kBlockBytes,
                problem.text);
}

FileRecord write_data_file(FileSystem& files, const std::string& folder, const std::string& name,
                           const Hdf5Skeleton& skeleton, const std::vector<WritePiece>& pieces) {
  const FileImage image(skeleton, pieces);
  FileRecord record;
  record.name = name;
  record.size_bytes = skeleton.size_bytes;
  File file = File::create(files, folder + "/" + name);
  file.reserve(record.size_bytes);
  run_on_threads(record.size_bytes < kThreadingPaysBytes ? 1 : 2, [&](int thread) {
    if (thread == 0) write_blocks(image, file, files);
    if (thread == 1 || record.size_bytes < kThreadingPaysBytes) hash_blocks(image, &record);
  });
  file.sync();
  file.close();
  return record;
}

std::vector<Damage> read_data_file(FileSystem& files, const std::string& folder, const FileRecord& record,
                                   const FilePlan& plan, ReadMode mode, bool from_disk) {
  const File file = File::open(files, folder + "/" + record.name);
  if (from_disk) files.drop_cache(file.descriptor());
  std::vector<Damage> problems;
  const int64_t size_bytes = file.size_bytes();
  if (size_bytes != record.size_bytes) {
    problems.push_back({record.name, -1, format("has {} bytes, {} were written", size_bytes, record.size_bytes)});
    if (mode == ReadMode::kStopAtFirstProblem) return problems;
  }
  // Threads take runs of blocks in turn, so that each reads on in long stretches. The file's own hash needs the order.
  constexpr int64_t kRunBlocks = 4;
  const bool all = mode == ReadMode::kFindAllProblems;
  std::vector<BlockRange> runs;
  int64_t wanted_blocks = 0;
  for (const BlockRange& range : all ? whole_file(record).blocks : plan.blocks)
    for (int64_t i = range.begin; i < range.end; i += kRunBlocks) {
      runs.push_back({i, std::min(range.end, i + kRunBlocks)});
      wanted_blocks += runs.back().end - i;
    }
  Xxh3Stream whole;
  std::mutex mutex;  // guards problems
  std::atomic<size_t> next_run{0};
  run_on_threads(all || wanted_blocks * kBlockBytes < kThreadingPaysBytes ? 1 : 2, [&](int) {
    std::vector<char> scratch(static_cast<size_t>(std::min(kBlockBytes, std::max<int64_t>(size_bytes, 1))));
    for (size_t run = next_run++; run < runs.size(); run = next_run++) {
      for (int64_t i = runs[run].begin; i < runs[run].end; ++i) {
        const int64_t begin = i * kBlockBytes;
        const int64_t end = std::min(begin + kBlockBytes, record.size_bytes);
        if (begin >= size_bytes) return;  // cut short: said above
        char* direct = plan.direct(begin, end);
        char* bytes = direct != nullptr ? direct : scratch.data();
        const size_t count = file.read_at(begin, bytes, static_cast<size_t>(std::min(end, size_bytes) - begin));
        if (all) whole.update(bytes, count);
        if (static_cast<int64_t>(count) != end - begin ||
            xxh3_64(bytes, count) != record.blocks[static_cast<size_t>(i)]) {
          const std::lock_guard<std::mutex> lock(mutex);
          problems.push_back({record.name, i, "its bytes do not give the checksum in the manifest"});
          if (!all) {
            next_run = runs.size();  // the others stop too
            return;
          }
          continue;
        }
        if (direct == nullptr) plan.copy(begin, end, bytes);
      }
    }
  });
  if (all && problems.empty() && whole.digest_hex() != record.xxh3_128)
    problems.push_back(
        {record.name, -1, "every block is as recorded, but the whole does not give the XXH3-128 in the manifest"});
  return problems;
}

}  // namespace temper
