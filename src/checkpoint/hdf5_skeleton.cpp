#include "checkpoint/hdf5_skeleton.h"

#include <hdf5.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <set>
#include <utility>

#include "checkpoint/manifest.h"
#include "core/error.h"

namespace temper {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

// ---- The driver: a sparse memory of pages ----

struct PageFile {
  H5FD_t base;  // HDF5's part, first
  Hdf5Skeleton* image;
  haddr_t allocated;
};

// What a file access property list carries to page_open.
struct PageDriverInfo {
  Hdf5Skeleton* image;
};

PageFile* as_page_file(H5FD_t* file) { return reinterpret_cast<PageFile*>(file); }
const PageFile* as_page_file(const H5FD_t* file) { return reinterpret_cast<const PageFile*>(file); }

hid_t page_driver();

H5FD_t* page_open(const char*, unsigned, hid_t access, haddr_t) {
  const auto* info = static_cast<const PageDriverInfo*>(H5Pget_driver_info(access));
  if (info == nullptr) return nullptr;
  auto* file = new PageFile{};
  file->image = info->image;
  return &file->base;
}

herr_t page_close(H5FD_t* file) {
  delete as_page_file(file);
  return 0;
}

herr_t page_query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t page_get_allocated(const H5FD_t* file, H5FD_mem_t) { return as_page_file(file)->allocated; }

herr_t page_set_allocated(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  as_page_file(file)->allocated = address;
  return 0;
}

haddr_t page_get_end(const H5FD_t* file, H5FD_mem_t) {
  return static_cast<haddr_t>(as_page_file(file)->image->size_bytes);
}

// Calls `piece(page, position in the page, position in the buffer, size)` for each page that [address, address + size)
// meets.
template <class F>
void for_each_page(haddr_t address, size_t size, F&& piece) {
  size_t done = 0;
  while (done < size) {
    const auto position = static_cast<int64_t>(address + done);
    const int64_t within = position % Hdf5Skeleton::kPageBytes;
    const size_t count = std::min(size - done, static_cast<size_t>(Hdf5Skeleton::kPageBytes - within));
    piece(position / Hdf5Skeleton::kPageBytes, static_cast<size_t>(within), done, count);
    done += count;
  }
}

herr_t page_read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  const auto& pages = as_page_file(file)->image->pages;
  for_each_page(address, size, [&](int64_t page, size_t within, size_t done, size_t count) {
    const auto found = pages.find(page);
    if (found == pages.end())
      std::memset(static_cast<char*>(buffer) + done, 0, count);
    else
      std::memcpy(static_cast<char*>(buffer) + done, found->second.data() + within, count);
  });
  return 0;
}

herr_t page_write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* buffer) {
  Hdf5Skeleton* image = as_page_file(file)->image;
  for_each_page(address, size, [&](int64_t page, size_t within, size_t done, size_t count) {
    std::string& bytes = image->pages[page];
    bytes.resize(Hdf5Skeleton::kPageBytes, '\0');
    std::memcpy(bytes.data() + within, static_cast<const char*>(buffer) + done, count);
  });
  image->size_bytes = std::max(image->size_bytes, static_cast<int64_t>(address + size));
  return 0;
}

herr_t page_truncate(H5FD_t* file, hid_t, hbool_t) {
  as_page_file(file)->image->size_bytes = static_cast<int64_t>(as_page_file(file)->allocated);
  return 0;
}

hid_t page_driver() {
  static const hid_t driver = [] {
    H5FD_class_t driver_class{};
    driver_class.name = "temper_pages";
    driver_class.maxaddr = std::numeric_limits<int64_t>::max();
    driver_class.fc_degree = H5F_CLOSE_STRONG;
    driver_class.fapl_size = sizeof(PageDriverInfo);
    driver_class.open = page_open;
    driver_class.close = page_close;
    driver_class.query = page_query;
    driver_class.get_eoa = page_get_allocated;
    driver_class.set_eoa = page_set_allocated;
    driver_class.get_eof = page_get_end;
    driver_class.read = page_read;
    driver_class.write = page_write;
    driver_class.truncate = page_truncate;
    const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), std::begin(driver_class.fl_map));
#if H5_VERSION_GE(1, 13, 2)
    driver_class.version = H5FD_CLASS_VERSION;
    driver_class.value = static_cast<H5FD_class_value_t>(512);  // the range of unregistered drivers
#endif
    return H5FDregister(&driver_class);
  }();
  return driver;
}

// ---- Handles and errors ----

// The innermost message of HDF5's error stack.
std::string hdf5_reason() {
  std::string text = "no reason given";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &text);
  return text;
}

template <class Result>
Result check_hdf5(Result result, const std::string& what) {
  if (result < 0)
    throw IoError("HDF5 cannot lay out {}: {}. Check the memory left and the names.", what, hdf5_reason());
  return result;
}

class Handle {
 public:
  Handle(hid_t id, herr_t (*close_id)(hid_t), const std::string& what) : id_(check_hdf5(id, what)), close_(close_id) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }
  void close(const std::string& what) { check_hdf5(close_(std::exchange(id_, -1)), what); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// HDF5 prints its error stack on standard error by default; ours carry the reason instead.
class QuietErrors {
 public:
  QuietErrors() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~QuietErrors() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

// ---- Types and spaces ----

// Sign, exponent and mantissa of a 2-byte float; HDF5 1.10 has none of its own. bf16 equals HDF5 2.0's
// H5T_FLOAT_BFLOAT16LE.
hid_t copy_small_float(size_t exponent_bits, size_t mantissa_bits) {
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_precision(type, 16);
  H5Tset_offset(type, 0);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, (size_t{1} << (exponent_bits - 1)) - 1);
  return type;
}

hid_t copy_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return H5Tcopy(H5T_IEEE_F32LE);
    case at::kDouble:
      return H5Tcopy(H5T_IEEE_F64LE);
    case at::kBFloat16:
      return copy_small_float(8, 7);
    case at::kHalf:
      return copy_small_float(5, 10);
    case at::kLong:
      return H5Tcopy(H5T_STD_I64LE);
    case at::kInt:
      return H5Tcopy(H5T_STD_I32LE);
    case at::kShort:
      return H5Tcopy(H5T_STD_I16LE);
    case at::kChar:
      return H5Tcopy(H5T_STD_I8LE);
    case at::kByte:
    case at::kBool:
      return H5Tcopy(H5T_STD_U8LE);
    default:
      return -1;
  }
}

// A tensor without dimensions is one of shape [1] in HDF5: virtual data sets cannot be scalar.
std::vector<hsize_t> extents(const std::vector<int64_t>& shape) {
  std::vector<hsize_t> dims(shape.begin(), shape.end());
  if (dims.empty()) dims.push_back(1);
  return dims;
}

hid_t make_space(const std::vector<int64_t>& shape) {
  const auto dims = extents(shape);
  return H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
}

// What a virtual data set shows where its shard is missing: NaN or the lowest integer, never a plausible zero.
void set_missing_value(hid_t properties, at::ScalarType dtype, const std::string& what) {
  if (at::isFloatingType(dtype)) {
    const double missing = std::numeric_limits<double>::quiet_NaN();
    check_hdf5(H5Pset_fill_value(properties, H5T_NATIVE_DOUBLE, &missing), what);
  } else if (dtype == at::kByte || dtype == at::kBool) {
    const uint8_t missing = 255;
    check_hdf5(H5Pset_fill_value(properties, H5T_NATIVE_UINT8, &missing), what);
  } else {
    const int64_t missing = std::numeric_limits<int64_t>::min();  // HDF5 clamps it to the narrower types' lowest
    check_hdf5(H5Pset_fill_value(properties, H5T_NATIVE_INT64, &missing), what);
  }
}

void write_attribute(hid_t data_set, const char* name, const std::vector<int64_t>& values) {
  const hsize_t count = values.size();
  Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, name);
  Handle attribute(H5Acreate2(data_set, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, name);
  check_hdf5(H5Awrite(attribute, H5T_NATIVE_INT64, values.data()), name);
}

// HDF5 would say the same in a less helpful way.
void check_names(const std::vector<std::string>& names) {
  std::set<std::string> known(names.begin(), names.end());
  TEMPER_CHECK(known.size() == names.size(), "a tensor name occurs twice");
  for (const std::string& name : names)
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
      if (known.count(name.substr(0, slash)) > 0)
        throw ConfigError("Tensor {} cannot be saved: {} is a tensor too, not a group. Rename one.", name,
                          name.substr(0, slash));
}

// Those that the names lead through. HDF5 would make them by itself, but with the time in each.
void make_groups(hid_t file, const std::vector<std::string>& names) {
  Handle creation(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "groups");
  check_hdf5(H5Pset_obj_track_times(creation, false), "groups");
  std::set<std::string> made;
  for (const std::string& name : names)
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      if (!made.insert(group).second) continue;
      Handle(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, creation, H5P_DEFAULT), H5Gclose, group);
    }
}

// Creates a file through the page driver, lets `fill` define its contents, closes it.
template <class F>
Hdf5Skeleton lay_out(const std::string& what, const std::vector<std::string>& names, F&& fill) {
  check_names(names);
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  QuietErrors quiet;
  Hdf5Skeleton image;
  PageDriverInfo info{&image};
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, what);
  check_hdf5(H5Pset_driver(access, check_hdf5(page_driver(), what), &info), what);
  check_hdf5(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), what);
  check_hdf5(H5Pset_alignment(access, Hdf5Skeleton::kPageBytes, Hdf5Skeleton::kPageBytes), what);
  // All metadata at the front, instead of a little between the data sets every 2 KiB. About 400 bytes a data set were
  // seen.
  const hsize_t metadata_bytes = std::max<hsize_t>(2048, 512 * names.size());
  check_hdf5(H5Pset_meta_block_size(access, metadata_bytes), what);
  check_hdf5(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), what);
  // No object keeps the time of its making: the same state gives the same bytes.
  Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, what);
  check_hdf5(H5Pset_obj_track_times(creation, false), what);
  Handle file(H5Fcreate("in memory", H5F_ACC_TRUNC, creation, access), H5Fclose, what);
  make_groups(file, names);
  fill(static_cast<hid_t>(file), image);
  file.close(what);
  return image;
}

Handle make_creation_list(const std::string& what) { return Handle(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, what); }

}  // namespace

std::vector<std::string> piece_names(const TensorRecord& tensor) {
  std::map<int32_t, int> seen;  // boxes so far, by shard
  std::vector<std::string> names;
  for (const Box& box : tensor.boxes) {
    const int k = seen[box.shard]++;
    names.push_back(k == 0 ? tensor.name : format("{}#{}", tensor.name, k));
  }
  return names;
}

Hdf5Skeleton make_shard_skeleton(const std::vector<ShardPiece>& pieces) {
  std::vector<std::string> names;
  for (const ShardPiece& piece : pieces) names.push_back(piece.name);
  return lay_out("a shard", names, [&](hid_t file, Hdf5Skeleton& image) {
    for (const ShardPiece& piece : pieces) {
      Handle type(copy_type(piece.dtype), H5Tclose, piece.name);
      Handle space(make_space(piece.size), H5Sclose, piece.name);
      Handle creation = make_creation_list(piece.name);
      check_hdf5(H5Pset_layout(creation, H5D_CONTIGUOUS), piece.name);
      check_hdf5(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), piece.name);
      check_hdf5(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), piece.name);
      check_hdf5(H5Pset_obj_track_times(creation, false), piece.name);
      Handle data_set(H5Dcreate2(file, piece.name.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
                      piece.name);
      if (piece.size != piece.tensor_shape) {
        write_attribute(data_set, "tensor_shape", piece.tensor_shape);
        write_attribute(data_set, "start", piece.start);
      }
      const haddr_t offset = H5Dget_offset(data_set);
      TEMPER_CHECK(offset != HADDR_UNDEF, "HDF5 gave {} no place", piece.name);
      image.offsets.push_back(static_cast<int64_t>(offset));
    }
  });
}

Hdf5Skeleton make_global_skeleton(const std::vector<TensorRecord>& tensors) {
  std::vector<std::string> names;
  for (const TensorRecord& tensor : tensors) names.push_back(tensor.name);
  return lay_out(kGlobalName, names, [&](hid_t file, Hdf5Skeleton&) {
    for (const TensorRecord& tensor : tensors) {
      Handle type(copy_type(tensor.dtype), H5Tclose, tensor.name);
      Handle space(make_space(tensor.shape), H5Sclose, tensor.name);
      Handle creation = make_creation_list(tensor.name);
      check_hdf5(H5Pset_obj_track_times(creation, false), tensor.name);
      if (!tensor.boxes.empty()) set_missing_value(creation, tensor.dtype, tensor.name);
      const auto sources = piece_names(tensor);
      for (size_t i = 0; i < tensor.boxes.size(); ++i) {
        const Box& box = tensor.boxes[i];
        auto start = extents(box.start);
        const auto size = extents(box.size);
        if (box.start.empty()) start[0] = 0;
        Handle source_space(make_space(box.size), H5Sclose, tensor.name);
        check_hdf5(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr),
                   tensor.name);
        check_hdf5(H5Pset_virtual(creation, space, shard_name(box.shard).c_str(), sources[i].c_str(), source_space),
                   tensor.name);
      }
      check_hdf5(H5Sselect_all(space), tensor.name);
      Handle data_set(H5Dcreate2(file, tensor.name.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
                      tensor.name);
    }
  });
}

}  // namespace temper
