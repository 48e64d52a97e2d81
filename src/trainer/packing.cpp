#include "trainer/packing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

namespace temper {
namespace {

// Completions of one group that share a laid prompt.
struct Unit {
  std::vector<int64_t> completions;
  int64_t rows = 0;
};

int64_t own_rows(const StepBatch::Sequence& sequence, RowOf row_of) {
  return static_cast<int64_t>(sequence.completion->size()) - (row_of == RowOf::kToken ? 0 : 1);
}
int64_t prompt_rows(const StepBatch::Sequence& sequence) { return static_cast<int64_t>(sequence.prompt->size()); }

// A group that does not fit is cut: each part lays its own copy of the prompt.
std::vector<Unit> make_units(const StepBatch& batch, const std::vector<int64_t>& completions,
                             const PackOptions& options) {
  std::vector<Unit> units;
  int64_t group = -1;
  for (const int64_t i : completions) {
    const auto& sequence = batch.sequences[i];
    const int64_t rows = own_rows(sequence, options.row_of);
    if (sequence.group != group || (!options.whole_groups && units.back().rows + rows > options.max_tokens)) {
      units.push_back({{}, prompt_rows(sequence)});
      group = sequence.group;
    }
    units.back().completions.push_back(i);
    units.back().rows += rows;
  }
  return units;
}

size_t bins_by_first_fit(std::span<const Unit> descending, int64_t max_tokens) {
  std::vector<int64_t> filled;
  for (const Unit& unit : descending) {
    const auto bin =
        std::find_if(filled.begin(), filled.end(), [&](int64_t rows) { return rows + unit.rows <= max_tokens; });
    if (bin == filled.end())
      filled.push_back(unit.rows);
    else
      *bin += unit.rows;
  }
  return filled.size();
}

// Largest first, each to the emptiest bin.
std::vector<std::vector<int64_t>> balance(std::span<const Unit> descending, size_t num_bins, int64_t* fullest) {
  std::vector<std::vector<int64_t>> bins(num_bins);
  std::vector<int64_t> filled(num_bins, 0);
  for (const Unit& unit : descending) {
    const size_t bin = std::min_element(filled.begin(), filled.end()) - filled.begin();
    bins[bin].insert(bins[bin].end(), unit.completions.begin(), unit.completions.end());
    filled[bin] += unit.rows;
  }
  *fullest = *std::max_element(filled.begin(), filled.end());
  return bins;
}

}  // namespace

std::vector<MicroBatch> pack_micro_batches(const StepBatch& batch, const std::vector<int64_t>& completions,
                                           const PackOptions& options) {
  std::vector<MicroBatch> packed;
  if (completions.empty()) return packed;
  std::vector<Unit> units = make_units(batch, completions, options);
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.rows > b.rows; });
  const auto fitting =
      std::find_if(units.begin(), units.end(), [&](const Unit& unit) { return unit.rows <= options.max_tokens; });
  for (auto unit = units.begin(); unit != fitting; ++unit)
    packed.push_back(pack(batch, std::move(unit->completions), options.row_of));
  if (fitting == units.end()) return packed;
  const std::span<const Unit> rest(fitting, units.end());
  size_t num_bins = bins_by_first_fit(rest, options.max_tokens);
  int64_t fullest = 0;
  auto bins = balance(rest, num_bins, &fullest);
  while (fullest > options.max_tokens) bins = balance(rest, ++num_bins, &fullest);
  for (auto& bin : bins) {
    std::sort(bin.begin(), bin.end());
    packed.push_back(pack(batch, std::move(bin), options.row_of));
  }
  return packed;
}

MicroBatch pack(const StepBatch& batch, std::vector<int64_t> completions, RowOf row_of) {
  SequencePacker packer(row_of);
  int64_t group = -1;
  for (const int64_t i : completions) {
    const auto& sequence = batch.sequences[i];
    if (sequence.group != group) packer.begin_group(*sequence.prompt);
    group = sequence.group;
    packer.add(*sequence.completion);
  }
  return {std::move(completions), packer.finish()};
}

}  // namespace temper
