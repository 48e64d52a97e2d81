#include "checkpoint/tiers.h"

#include "checkpoint/atomic_directory.h"
#include "checkpoint/manifest.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int kKeepRam = 1;  // memory is dear, and the local disk has older ones

}  // namespace

CheckpointTiers::CheckpointTiers(FileSystem& files, const TierOptions& options, Communicator* ranks,
                                 Communicator* copying_ranks)
    : files_(files),
      options_(options),
      communicator_(ranks),
      ranks_(ranks),
      local_(files, options.local, options.keep_local, ranks) {
  if (!options.ram.empty()) ram_.emplace(files, options.ram, kKeepRam, ranks);
  if (!options.durable.empty()) durable_.emplace(files, options.durable, options.keep_durable, copying_ranks);
}

NodeLayout CheckpointTiers::probe(const char* key, const std::string& directory) const {
  try {
    return NodeLayout::probe(files_, directory, ranks_);
  } catch (const IoError& error) {
    throw IoError("{} cannot be used: {}", key, error.what());
  }
}

// A tier that may be each node's own.
void CheckpointTiers::prepare_own(const char* key, CheckpointStore& store, NodeLayout& nodes,
                                  std::optional<Partners>& partners) {
  nodes = probe(key, store.directory());
  if (options_.replicate && ranks_.size() > 1) partners.emplace(*communicator_, nodes);
  if (options_.replicate && !(partners && partners->any()) && ranks_.leads())
    log_warning("checkpoint.replicate: all ranks see one {}, so no other node holds a copy.", key);
  store.spread_over(nodes, partners ? &*partners : nullptr);
  if (nodes.leads(ranks_.rank())) store.remove_stale();
}

void CheckpointTiers::prepare() {
  prepare_own("checkpoint.local_dir", local_, nodes_, partners_);
  if (ram_) prepare_own("checkpoint.ram_dir", *ram_, ram_nodes_, ram_partners_);
  if (!durable_) return;
  if (probe("checkpoint.durable_dir", durable_->directory()).num_nodes() > 1)
    throw ConfigError(
        "checkpoint.durable_dir: not all ranks see what rank 0 writes to {}. Give a folder on a file system that all "
        "nodes mount.",
        durable_->directory());
  if (ranks_.leads()) durable_->remove_stale();
}

std::optional<LoadedCheckpoint> CheckpointTiers::load_newest(const ChooseDestinations& destinations) {
  std::vector<TierFolder> tiers;
  if (ram_) tiers.push_back({"ram", ram_->directory()});
  tiers.push_back({"local", local_.directory()});
  if (durable_) tiers.push_back({"durable", durable_->directory()});
  auto loaded = TierReader(files_, std::move(tiers), local_.directory(), &nodes_, ranks_).load_newest(destinations);
  if (loaded && loaded->whole_folder)
    for (CheckpointStore* store : {&local_, ram_ ? &*ram_ : nullptr, durable_ ? &*durable_ : nullptr})
      if (store != nullptr && parent_folder(loaded->path) == store->directory()) store->trust(loaded->path);
  return loaded;
}

LoadedCheckpoint CheckpointTiers::load(const std::string& path, const ChooseDestinations& destinations) {
  if (nodes_.num_nodes() == 1) return local_.load(path, destinations);
  TierReader reader(files_, {{"", parent_folder(path)}}, local_.directory(), &nodes_, ranks_);
  auto loaded = reader.load_step(parse_step_name(base_name(path)), destinations);
  if (!loaded) throw IoError("{}: no node has such a checkpoint. `temper checkpoint ls` shows a run's.", path);
  return *loaded;
}

void CheckpointTiers::set_aside_newer_than(int64_t step) {
  ranks_.act("newer checkpoints set aside", [&] {
    local_.set_aside_newer_than(step);
    if (ram_) ram_->delete_newer_than(step);
    if (durable_) durable_->set_aside_newer_than(step);
    return std::string();
  });
}

SaveReport CheckpointTiers::save(const CheckpointState& state, const SaveTargets& targets) {
  SaveReport report;
  const auto save_to_ram = [&] {
    try {
      ram_->save(state);
      report.partners = ram_->copy_failure();
    } catch (const IoError& error) {
      report.ram = format("checkpoint.ram_dir: {}", error.what());
    }
  };
  if (!targets.local) {
    if (targets.ram) save_to_ram();
    return report;
  }
  try {
    local_.save(state);
    report.partners = local_.copy_failure();
  } catch (const IoError&) {
    if (ram_) save_to_ram();  // at least there
    throw;
  }
  return report;
}

void CheckpointTiers::release_ram() {
  if (ram_)
    ranks_.act("memory given back", [&] {
      if (is_folder(ram_->directory())) ram_->delete_all();
      return std::string();
    });
}

std::string CheckpointTiers::local_path(int64_t step) const { return local_.directory() + "/" + step_name(step); }

}  // namespace temper
