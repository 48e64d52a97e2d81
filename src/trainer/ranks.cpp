#include "trainer/ranks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "comm/wire_format.h"
#include "core/clock.h"
#include "core/error.h"
#include "model/tensor_parallel.h"
#include "trainer/adamw.h"

namespace temper {
namespace {

// Completions that are computed together, and the rows that takes.
struct GroupRows {
  std::vector<int64_t> completions;
  int64_t rows = 0;
};

std::vector<GroupRows> units_of(const StepBatch& batch, const std::vector<int64_t>& completions, bool whole_groups) {
  std::vector<GroupRows> units;
  int64_t group = -1;
  for (const int64_t i : completions) {
    const StepBatch::Sequence& sequence = batch.sequences[static_cast<size_t>(i)];
    if (units.empty() || !whole_groups || sequence.group != group) {
      units.emplace_back();
      units.back().rows = static_cast<int64_t>(sequence.prompt->size());
    }
    group = sequence.group;
    units.back().completions.push_back(i);
    units.back().rows += static_cast<int64_t>(sequence.completion->size());
  }
  return units;
}

at::Tensor slice(const at::Tensor& flat, const FlatRange& range) { return flat.narrow(0, range.begin, range.size()); }

}  // namespace

Ranks Ranks::with_tensor_parallel(int64_t count) const {
  if (count == 1) return *this;
  if (size() % count != 0)
    throw ConfigError(
        "train.tensor_parallel = {}: {} cannot be grouped so. Start a multiple of {} (train.ranks), or give a divisor.",
        count, size() == 1 ? "1 rank" : format("{} ranks", size()), count);
  const int width = static_cast<int>(count);
  Ranks ranks = *this;
  ranks.tensor_ = comm_->split(rank() / width, rank());
  ranks.data_ = comm_->split(rank() % width, rank());
  return ranks;
}

Ranks Ranks::with_replicas(int64_t count) const {
  const Ranks data = data_parallel();
  if (count == 1 || data.size() == 1) return *this;
  if (data.size() % count != 0)
    throw ConfigError(
        "train.replicas = {}: {} ranks cannot be dealt out evenly. Give a divisor of the number of ranks.", count,
        data.size());
  const int group_size = data.size() / static_cast<int>(count);
  Ranks ranks = *this;
  ranks.group_ = data.comm_->split(data.rank() / group_size, data.rank());
  ranks.peers_ = data.comm_->split(data.rank() % group_size, data.rank());
  return ranks;
}

Ranks Ranks::shard_group() const { return group_ ? Ranks(group_) : data_parallel(); }

void Ranks::sum_over_replicas(const ShardPlan& plan, const std::vector<FlatPart>& parts) const {
  if (!peers_ || !plan.is_sharded()) return;
  std::vector<CommHandle> sent;
  for (const FlatRange& range : plan.owned())
    sent.push_back(peers_->all_reduce("gradients of the replicas", elements_of(parts, range)));
  for (CommHandle& handle : sent) handle.wait();
}

std::vector<int64_t> Ranks::own(const StepBatch& batch, const std::vector<int64_t>& completions,
                                bool whole_groups) const {
  const Ranks data = data_parallel();
  if (data.size() == 1) return completions;
  std::vector<GroupRows> units = units_of(batch, completions, /*whole_groups=*/true);
  if (!whole_groups && static_cast<int64_t>(units.size()) < 2 * data.size())
    units = units_of(batch, completions, false);
  std::stable_sort(units.begin(), units.end(), [](const GroupRows& a, const GroupRows& b) { return a.rows > b.rows; });
  std::vector<int64_t> work(static_cast<size_t>(data.size()), 0), own;
  for (const GroupRows& unit : units) {
    const auto least = std::min_element(work.begin(), work.end()) - work.begin();
    work[static_cast<size_t>(least)] += unit.rows;
    if (least == data.rank()) own.insert(own.end(), unit.completions.begin(), unit.completions.end());
  }
  std::sort(own.begin(), own.end());
  return own;
}

void Ranks::fill_in(const at::Tensor& numbers) const {
  const Ranks data = data_parallel();
  if (data.size() > 1 && numbers.numel() > 0) data.comm_->all_reduce("token numbers", numbers).wait();
}

MetricSums Ranks::merge(const MetricSums& own) const {
  const Ranks data = data_parallel();
  if (data.size() == 1) return own;
  WireWriter writer;
  for (const MetricSum& entry : own.entries()) {
    writer.text(entry.name);
    writer.number(static_cast<uint8_t>(entry.reduction));
    writer.number(entry.value);
    writer.number(entry.weight);
    writer.number(static_cast<uint8_t>(entry.logged));
  }
  MetricSums all;
  for (const std::string& text : data.comm_->gather_texts("metrics", writer.take())) {
    WireReader reader(text);
    while (!reader.at_end()) {
      MetricSum entry;
      entry.name = reader.text();
      entry.reduction = static_cast<Reduction>(reader.number<uint8_t>());
      entry.value = reader.number<double>();
      entry.weight = reader.number<double>();
      entry.logged = reader.number<uint8_t>() != 0;
      all.add(entry);
    }
  }
  return all;
}

void Ranks::wait_for_all(const std::string& what) const {
  if (size() > 1) comm_->barrier(what);
}

int64_t Ranks::sum(int64_t value) const {
  if (size() == 1) return value;
  const at::Tensor total = at::full({1}, value, at::kLong);
  comm_->all_reduce("count", total).wait();
  return total.item<int64_t>();
}

int64_t Ranks::max(int64_t value) const {
  if (size() == 1) return value;
  const at::Tensor largest = at::full({1}, value, at::kLong);
  comm_->all_reduce("largest count", largest, ReduceOp::kMax).wait();
  return largest.item<int64_t>();
}

bool Ranks::any(bool value) const { return sum(value ? 1 : 0) > 0; }

void Ranks::lead(const std::function<void()>& act) const {
  std::string failure;
  try {
    if (leads()) act();
  } catch (const IoError& error) {
    failure = error.what();
  }
  failure = first_error(failure);
  if (!failure.empty()) throw IoError("{}", failure);
}

std::string Ranks::first_error(const std::string& own) const {
  if (size() == 1) return own;
  if (!any(!own.empty())) return {};
  const std::vector<std::string> texts = comm_->gather_texts("errors", own);
  for (size_t r = 0; r < texts.size(); ++r)
    if (!texts[r].empty()) return format("rank {}: {}", r, texts[r]);
  return {};
}

void GradientSum::block_done(int64_t block) {
  if (ranks_.size() == 1) return;
  TEMPER_CHECK(block == next_, "block {} comes, {} is expected", block, next_);
  if (block == plan_.num_blocks() - 1) {
    send("gradients of the embedding", plan_.segments().front());
    send("gradients of the head", plan_.segments().back());
  }
  send(format("gradients of block {}", block), plan_.segments()[static_cast<size_t>(block) + 1]);
  next_ = block - 1;
}

double GradientSum::finish() {
  if (ranks_.size() == 1) return 0;
  const Stopwatch watch;
  while (next_ >= 0) block_done(next_);
  for (CommHandle& handle : sent_) handle.wait();
  sent_.clear();
  add_lookups();
  next_ = plan_.num_blocks() - 1;
  return watch.seconds();
}

void GradientSum::looked_up(const at::Tensor& token_ids, const at::Tensor& rows) {
  looked_up_ids_.push_back(token_ids);
  looked_up_rows_.push_back(rows);
}

// Every rank adds all ranks' rows, in the order of the ranks. Where these would be more than the matrix has, the matrix
// itself is summed.
void GradientSum::add_lookups() {
  Communicator& comm = *ranks_.communicator();
  const at::Tensor none = at::empty({0, embedding_.size(1)}, embedding_.options());
  at::Tensor ids =
      looked_up_ids_.empty() ? at::empty({0}, embedding_.options().dtype(at::kLong)) : at::cat(looked_up_ids_);
  at::Tensor rows = looked_up_rows_.empty() ? none : at::cat(looked_up_rows_);
  looked_up_ids_.clear();
  looked_up_rows_.clear();
  const at::Tensor own = at::full({1}, ids.size(0), at::kLong), counts = at::empty({comm.size()}, at::kLong);
  comm.all_gather("number of looked-up rows", own, counts).wait();
  const int64_t most = counts.max().item<int64_t>();
  if (most == 0) return;
  if (most * comm.size() > embedding_.size(0)) {
    at::Tensor sum = at::zeros_like(embedding_).index_add_(0, ids, rows);
    comm.all_reduce("looked-up rows", sum).wait();
    embedding_.add_(sum);
    return;
  }
  const int64_t missing = most - ids.size(0), width = rows.size(1);
  ids = at::constant_pad_nd(ids, {0, missing});
  rows = at::constant_pad_nd(rows, {0, 0, 0, missing}).contiguous();
  const at::Tensor all_ids = at::empty({comm.size() * most}, ids.options());
  const at::Tensor all_rows = at::empty({comm.size() * most, width}, rows.options());
  CommHandle of_ids = comm.all_gather("looked-up tokens", ids, all_ids);
  comm.all_gather("looked-up rows", rows, all_rows).wait();
  of_ids.wait();
  embedding_.index_add_(0, all_ids, all_rows);  // the padding's rows are zero
}

void GradientSum::send(const std::string& name, const FlatRange& segment) {
  if (plan_.is_sharded())
    begin_reduction(ranks_, name, slice(flat_, segment), sent_);
  else if (segment.size() > 0)
    sent_.push_back(ranks_.communicator()->all_reduce(name, slice(flat_, segment)));
}

void begin_reduction(const Ranks& ranks, const std::string& name, const at::Tensor& segment,
                     std::vector<CommHandle>& sent) {
  Communicator& comm = *ranks.communicator();
  const FlatRange whole{0, segment.numel()}, rest = left_over(whole, ranks.size());
  if (rest.begin > 0)
    sent.push_back(comm.reduce_scatter(name, slice(segment, {0, rest.begin}),
                                       slice(segment, equal_part(whole, ranks.rank(), ranks.size()))));
  if (rest.size() > 0) sent.push_back(comm.all_reduce(name, slice(segment, rest)));
}

void begin_gathering(const Ranks& ranks, const std::string& name, const at::Tensor& own, const at::Tensor& segment,
                     std::vector<CommHandle>& sent) {
  Communicator& comm = *ranks.communicator();
  const FlatRange rest = left_over({0, segment.numel()}, ranks.size());
  if (rest.begin > 0) sent.push_back(comm.all_gather(name, own, slice(segment, {0, rest.begin})));
  if (rest.size() > 0) sent.push_back(comm.broadcast(name, slice(segment, rest), ranks.size() - 1));
}

void gather_parts(const Ranks& ranks, const ShardPlan& plan, const char* name, const at::Tensor& flat) {
  if (!plan.is_sharded()) return;
  std::vector<CommHandle> sent;
  for (const FlatRange& segment : plan.segments())
    begin_gathering(ranks, name, slice(flat, equal_part(segment, ranks.rank(), ranks.size())), slice(flat, segment),
                    sent);
  for (CommHandle& handle : sent) handle.wait();
}

namespace {

// What of a rank's own ranges counts in a sum over all ranks: the first rank of a tensor-parallel group speaks for what
// all of the group hold.
std::vector<FlatRange> counted_ranges(const std::vector<FlatRange>& owned, const std::vector<ParameterSpec>& layout,
                                      const Communicator* tensor_group) {
  if (tensor_group == nullptr || tensor_group->rank() == 0) return owned;
  std::vector<FlatRange> counted;
  for (const FlatRange& range : owned)
    for (const ParameterSpec& spec : layout) {
      const FlatRange piece{std::max(range.begin, spec.offset), std::min(range.end, spec.offset + spec.num_elements())};
      if (piece.begin < piece.end && split_dimension(spec.name)) counted.push_back(piece);
    }
  return counted;
}

}  // namespace

double global_norm(const Ranks& ranks, const ShardPlan& plan, const std::vector<ParameterSpec>& layout,
                   const std::vector<FlatPart>& gradients) {
  if (!plan.is_sharded() && ranks.tensor_group() == nullptr)
    return global_norm(elements_of(gradients, {0, flat_size(layout)}));
  double squares = 0;
  for (const FlatRange& range : counted_ranges(plan.owned(), layout, ranks.tensor_group())) {
    const double norm = global_norm(elements_of(gradients, range));
    squares += norm * norm;
  }
  const at::Tensor total = at::full({1}, squares, at::kDouble);
  if (plan.is_sharded()) ranks.shard_group().communicator()->all_reduce("gradient norm", total).wait();
  if (ranks.tensor_group() != nullptr) ranks.tensor_group()->all_reduce("gradient norm", total).wait();
  return std::sqrt(total.item<double>());
}

}  // namespace temper
