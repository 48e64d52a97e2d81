#include "checkpoint/entries.h"

#include <algorithm>
#include <unordered_map>

#include "core/error.h"

namespace temper {
namespace {

std::string show(const std::vector<int64_t>& shape) { return "[" + join(shape) + "]"; }

constexpr char kWrongModelFix[] =
    "Point [model] path at the model it was trained from, or start afresh with --checkpoint.resume=never.";

bool is_whole(const TensorEntry& entry) { return entry.whole_shape.empty(); }
std::vector<int64_t> shape_of(const TensorEntry& entry) {
  return is_whole(entry) ? entry.tensor.sizes().vec() : entry.whole_shape;
}
std::vector<int64_t> start_of(const TensorEntry& entry) {
  return is_whole(entry) ? std::vector<int64_t>(static_cast<size_t>(entry.tensor.dim()), 0) : entry.start;
}

void check_storable(const TensorEntry& entry) {
  TEMPER_CHECK(entry.tensor.defined() && entry.tensor.device().is_cpu() && entry.tensor.is_contiguous() &&
                   entry.tensor.layout() == at::kStrided,
               "tensor {} of a checkpoint must be dense, contiguous and on the CPU", entry.name);
  if (is_whole(entry) || entry.tensor.numel() == 0) return;
  const auto dims = entry.whole_shape.size();
  TEMPER_CHECK(entry.start.size() == dims && static_cast<size_t>(entry.tensor.dim()) == dims,
               "the part of tensor {} has other dimensions than the whole", entry.name);
  for (size_t d = 0; d < dims; ++d) {
    const int64_t end = entry.start[d] + entry.tensor.size(static_cast<int64_t>(d));
    TEMPER_CHECK(entry.start[d] >= 0 && end <= entry.whole_shape[d], "the part of tensor {} leaves dimension {}",
                 entry.name, d);
  }
}

void refuse_other_shape(const std::string& path, const TensorRecord& tensor, const std::vector<int64_t>& shape) {
  if (shape == tensor.shape) return;
  const bool only_rows = shape.size() == tensor.shape.size() && !shape.empty() &&
                         std::equal(shape.begin() + 1, shape.end(), tensor.shape.begin() + 1);
  if (only_rows)
    throw ConfigError("checkpoint {}: tensor {} has {} rows, this model has {}. {}", path, tensor.name, tensor.shape[0],
                      shape[0], kWrongModelFix);
  throw ConfigError("checkpoint {}: tensor {} has shape {}, this model has {}. {}", path, tensor.name,
                    show(tensor.shape), show(shape), kWrongModelFix);
}

}  // namespace

bool EntryBoxes::any_box() const {
  return std::any_of(tensors.begin(), tensors.end(), [](const TensorRecord& tensor) { return !tensor.boxes.empty(); });
}

EntryBoxes describe_entries(const std::vector<TensorEntry>& entries) {
  EntryBoxes described;
  std::unordered_map<std::string, size_t> index;
  for (const TensorEntry& entry : entries) {
    check_storable(entry);
    const auto [found, is_new] = index.emplace(entry.name, described.tensors.size());
    if (is_new) {
      const std::string fault = find_name_fault(entry.name);
      if (!fault.empty())
        throw ConfigError("Tensor \"{}\" cannot be saved: its name {}. Rename it.", entry.name, fault);
      described.tensors.push_back({entry.name, entry.tensor.scalar_type(), shape_of(entry), {}});
      described.data.emplace_back();
    }
    TensorRecord& tensor = described.tensors[found->second];
    TEMPER_CHECK(tensor.shape == shape_of(entry) && tensor.dtype == entry.tensor.scalar_type(),
                 "the parts of tensor {} are not of one shape and type", entry.name);
    if (entry.tensor.numel() == 0) continue;
    tensor.boxes.push_back({0, 0, start_of(entry), entry.tensor.sizes().vec()});
    described.data[found->second].push_back(static_cast<const char*>(entry.tensor.const_data_ptr()));
  }
  return described;
}

std::vector<WantedBox> match_destinations(const std::string& path, const Manifest& manifest,
                                          const std::vector<TensorEntry>& destinations) {
  std::unordered_map<std::string, std::vector<const TensorEntry*>> by_name;
  for (const TensorEntry& entry : destinations) {
    check_storable(entry);
    std::vector<const TensorEntry*>& parts = by_name[entry.name];
    TEMPER_CHECK(parts.empty() || !is_whole(entry), "tensor {} has two destinations", entry.name);
    parts.push_back(&entry);
  }
  std::vector<WantedBox> wanted;
  for (const TensorRecord& tensor : manifest.tensors) {
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end())
      throw ConfigError("checkpoint {}: tensor {} {} has no place in this run. {}", path, tensor.name,
                        show(tensor.shape), kWrongModelFix);
    for (const TensorEntry* entry : found->second) {
      refuse_other_shape(path, tensor, shape_of(*entry));
      if (entry->tensor.scalar_type() != tensor.dtype)
        throw ConfigError("checkpoint {}: tensor {} holds {}, this run wants {}. {}", path, tensor.name,
                          dtype_name(tensor.dtype), dtype_name(entry->tensor.scalar_type()), kWrongModelFix);
      if (entry->tensor.numel() > 0)
        wanted.push_back(
            {&tensor, start_of(*entry), entry->tensor.sizes().vec(), static_cast<char*>(entry->tensor.data_ptr())});
    }
    by_name.erase(found);
  }
  if (!by_name.empty())
    throw ConfigError("checkpoint {}: tensor {} {} of this run is not in it ({} are missing). {}", path,
                      by_name.begin()->first, show(shape_of(*by_name.begin()->second.front())), by_name.size(),
                      kWrongModelFix);
  return wanted;
}

}  // namespace temper
