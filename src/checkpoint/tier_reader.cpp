#include "checkpoint/tier_reader.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "checkpoint/entries.h"
#include "checkpoint/fetch.h"
#include "checkpoint/folder.h"
#include "core/log.h"

namespace temper {

struct TierReader::Copy {
  int rank = 0;
  size_t tier = 0;
  std::string path;
  std::vector<std::string> wrong;  // [file] what keeps it from being read there; empty: nothing, as far as was looked
  bool lacks_any() const {
    return std::any_of(wrong.begin(), wrong.end(), [](const std::string& each) { return !each.empty(); });
  }
};

struct TierReader::Candidate {
  int64_t step = 0;
  double time = 0;
  std::string identity;      // empty: its manifest cannot be read
  std::string why_not;       // then
  std::vector<Copy> copies;  // ordered by rank, then tier
};

struct TierReader::Source {
  int rank = -1;  // -1: there is none
  size_t copy = 0;
};

namespace {

using Json = nlohmann::ordered_json;

}  // namespace

TierReader::TierReader(FileSystem& files, std::vector<TierFolder> tiers, std::string scratch, const NodeLayout* nodes,
                       const Agreement& ranks)
    : files_(files), tiers_(std::move(tiers)), scratch_(std::move(scratch)), nodes_(nodes), ranks_(ranks) {}

// What this rank sees in its tiers, for the others.
std::string TierReader::find_own() {
  Json found = Json::array();
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    std::vector<int64_t> steps;
    try {
      steps = find_steps(files_, tiers_[tier].directory);
    } catch (const IoError& error) {
      list_failure_ = error.what();
      log_warning("No checkpoint is looked for in the {} tier: {}", tiers_[tier].name, error.what());
    }
    for (const int64_t step : steps) {
      const std::string path = tiers_[tier].directory + "/" + step_name(step);
      Json copy = {{"step", step}, {"tier", tier}, {"path", path}, {"time", 0.0}, {"identity", ""}};
      try {
        const FolderPart part = open_folder_part(files_, path);
        copy["time"] = part.manifest.header.time;
        copy["identity"] = part.identity();
        copy["wrong"] = part.wrong;
        for (const std::string& wrong : part.wrong)
          if (!wrong.empty() && part.manifest.mesh.nodes == 1) log_warning("{}: {}.", path, wrong);
      } catch (const Error& error) {
        copy["why_not"] = error.what();
      }
      found.push_back(std::move(copy));
    }
  }
  return found.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Newest first; at one step the later save first, what cannot be read last.
std::vector<TierReader::Candidate> TierReader::find_candidates() {
  std::map<std::tuple<int64_t, double, std::string, std::string>, Candidate> all;
  const auto found = ranks_.act("checkpoints found", [&] { return find_own(); });
  for (size_t rank = 0; rank < found.size(); ++rank)
    for (const Json& copy : Json::parse(found[rank])) {
      const std::string why_not = copy.value("why_not", "");
      Candidate& candidate = all[{-copy.at("step").get<int64_t>(), -copy.at("time").get<double>(),
                                  copy.at("identity").get<std::string>(), why_not}];
      candidate.step = copy.at("step").get<int64_t>();
      candidate.time = copy.at("time").get<double>();
      candidate.identity = copy.at("identity").get<std::string>();
      candidate.why_not = why_not;
      const auto tier = copy.at("tier").get<size_t>();
      const bool own = static_cast<int>(rank) == ranks_.rank();  // its path may be no text that travels
      candidate.copies.push_back(
          {static_cast<int>(rank), tier,
           own ? tiers_[tier].directory + "/" + step_name(candidate.step) : copy.at("path").get<std::string>(),
           copy.value("wrong", std::vector<std::string>())});
    }
  std::vector<Candidate> candidates;
  for (auto& [key, candidate] : all) candidates.push_back(std::move(candidate));
  return candidates;
}

// One checkpoint is read; what is damaged in one copy is read from another.
class TierReader::Attempt {
 public:
  Attempt(TierReader& reader, const Candidate& candidate, std::string tag)
      : reader_(reader),
        candidate_(candidate),
        ranks_(reader.ranks_),
        own_path_(candidate.copies.front().path),
        fetched_folder_(format("{}/{}.tmp-{}-{}", reader.scratch_, step_name(candidate.step), tag, node_leader())) {}
  ~Attempt();
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  LoadedCheckpoint load(const ChooseDestinations& destinations);

 private:
  int node_leader() const {
    return reader_.nodes_ == nullptr ? ranks_.rank() : reader_.nodes_->leader_of(ranks_.rank());
  }
  void open();
  void plan(const ChooseDestinations& destinations);
  Source source_of(size_t file, int rank) const;
  Source choose_source(size_t file, int rank) const;
  void fetch_missing();
  bool read();
  std::string what_is_wrong(size_t file) const;
  std::string folder_of(const Source& source) const;

  TierReader& reader_;
  const Candidate& candidate_;
  const Agreement& ranks_;
  std::string own_path_;
  std::string fetched_folder_;
  bool has_fetched_ = false;
  Manifest manifest_;
  std::vector<TensorEntry> places_;
  ReadPlan plan_;
  std::vector<std::string> needed_;                           // [rank][file] '1' where the rank needs blocks of it
  std::vector<bool> done_;                                    // [file] read and verified by this rank
  std::map<std::pair<size_t, size_t>, std::string> damaged_;  // copy, file → what is wrong
  std::map<size_t, size_t> fetched_;                          // file → the copy that it came from
};

TierReader::Attempt::~Attempt() {
  if (!has_fetched_) return;
  try {
    remove_tree(reader_.files_, fetched_folder_);
  } catch (const Error& error) {
    log_warning("An unfinished folder stays behind: {}", error.what());
  }
}

// The manifest comes to ranks that have no copy from the first that has one.
void TierReader::Attempt::open() {
  const int holder = candidate_.copies.front().rank;
  const auto texts = ranks_.act("checkpoint opened", [&] {
    for (const Copy& copy : candidate_.copies) {
      if (copy.rank != ranks_.rank()) continue;
      own_path_ = copy.path;
      FolderPart part = open_folder_part(reader_.files_, copy.path);
      if (part.identity() != candidate_.identity)
        throw IoError("checkpoint {} was changed while it was opened. Does another run write there?", copy.path);
      manifest_ = std::move(part.manifest);
      return ranks_.rank() == holder ? part.text : std::string("has one");
    }
    return std::string();
  });
  ranks_.act("manifest received", [&] {
    if (texts[static_cast<size_t>(ranks_.rank())].empty())
      manifest_ = parse_manifest(texts[static_cast<size_t>(holder)], own_path_ + "/" + kManifestName);
    return std::string();
  });
}

void TierReader::Attempt::plan(const ChooseDestinations& destinations) {
  needed_ = ranks_.act("checkpoint planned", [&] {
    places_ = destinations(manifest_.header);
    plan_ = plan_reads(manifest_, match_destinations(own_path_, manifest_, places_));
    plan_.files.resize(manifest_.files.size());
    if (ranks_.size() > 1)
      add_blocks_between(manifest_, ranks_.rank(), ranks_.size(), &plan_);
    else
      for (size_t i = 0; i < manifest_.files.size(); ++i) plan_.files[i].blocks = whole_file(manifest_.files[i]).blocks;
    std::string needed;
    for (const FilePlan& file : plan_.files) needed += file.blocks.empty() ? '0' : '1';
    return needed;
  });
  done_.assign(manifest_.files.size(), false);
}

// The first good copy of the rank's own.
TierReader::Source TierReader::Attempt::source_of(size_t file, int rank) const {
  for (size_t i = 0; i < candidate_.copies.size(); ++i) {
    const Copy& copy = candidate_.copies[i];
    if (copy.rank == rank && copy.wrong[file].empty() && !damaged_.contains({i, file})) return {rank, i};
  }
  return {};
}

TierReader::Source TierReader::Attempt::choose_source(size_t file, int rank) const {
  Source source = source_of(file, rank);
  for (int other = 0; source.rank < 0 && other < ranks_.size(); ++other) source = source_of(file, other);
  return source;
}

std::string TierReader::Attempt::folder_of(const Source& source) const {
  return source.rank == ranks_.rank() ? candidate_.copies[source.copy].path : fetched_folder_;
}

// All ranks know what each of them has and needs, so all find the same files to be sent.
void TierReader::Attempt::fetch_missing() {
  for (size_t file = 0; file < manifest_.files.size(); ++file) {
    std::vector<int> receivers;
    Source source;
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      if (needed_[static_cast<size_t>(rank)][file] != '1' || source_of(file, rank).rank >= 0) continue;
      source = choose_source(file, rank);
      if (source.rank < 0)
        throw FormatError(
            "checkpoint {} is corrupt: {}, and no good copy is left. Use another one; `temper checkpoint "
            "verify` shows which are whole.",
            own_path_, what_is_wrong(file));
      receivers.push_back(rank);
    }
    if (receivers.empty()) continue;
    const auto before = fetched_.find(file);
    if (before != fetched_.end() && before->second == source.copy) continue;
    fetched_[file] = source.copy;
    // One rank of a node receives for all of it.
    const auto is_mate = [&](int rank) {
      return rank == ranks_.rank() || (reader_.nodes_ != nullptr && reader_.nodes_->together(rank, ranks_.rank()));
    };
    const auto first_mate = std::find_if(receivers.begin(), receivers.end(), is_mate);
    const bool receives = first_mate != receivers.end() && *first_mate == ranks_.rank();
    has_fetched_ |= receives;
    fetch_file(reader_.files_, manifest_.files[file], candidate_.copies[source.copy].path, source.rank,
               receives ? fetched_folder_ : "", ranks_);
  }
}

// True: every rank has all that it needs. Else what is damaged is noted on all of them.
bool TierReader::Attempt::read() {
  const auto reports = ranks_.act("checkpoint read", [&] {
    Json damaged = Json::object();
    for (size_t i = 0; i < manifest_.files.size(); ++i) {
      if (plan_.files[i].blocks.empty() || done_[i]) continue;
      const std::string folder = folder_of(choose_source(i, ranks_.rank()));
      std::string why;
      try {
        const auto problems = read_data_file(reader_.files_, folder, manifest_.files[i], plan_.files[i],
                                             ReadMode::kStopAtFirstProblem, /*from_disk=*/false);
        if (!problems.empty()) why = describe(problems[0]);
      } catch (const IoError& error) {
        why = error.what();
      }
      done_[i] = why.empty();
      if (why.empty()) continue;
      damaged[std::to_string(i)] = why;
      log_warning("checkpoint {} is corrupt: {}.", folder, why);
    }
    return damaged.dump(-1, ' ', false, Json::error_handler_t::replace);
  });
  std::map<std::pair<size_t, size_t>, std::string> found;
  for (int rank = 0; rank < ranks_.size(); ++rank) {
    const Json report = Json::parse(reports[static_cast<size_t>(rank)]);
    for (const auto& [file, why] : report.items()) {
      const size_t i = std::stoull(file);
      found.emplace(std::pair(choose_source(i, rank).copy, i), why.get<std::string>());
    }
  }
  const bool whole = found.empty();
  damaged_.merge(found);
  return whole;
}

// With a file of which no good copy is left.
std::string TierReader::Attempt::what_is_wrong(size_t file) const {
  for (const auto& [copy_and_file, why] : damaged_)
    if (copy_and_file.second == file) return why;
  for (const Copy& copy : candidate_.copies)
    if (!copy.wrong[file].empty()) return copy.wrong[file];
  return manifest_.files[file].name + " is missing";
}

LoadedCheckpoint TierReader::Attempt::load(const ChooseDestinations& destinations) {
  open();
  plan(destinations);
  do {
    fetch_missing();
  } while (!read());
  LoadedCheckpoint loaded{own_path_, manifest_.header};
  const size_t tier = candidate_.copies.front().tier;
  loaded.tier = reader_.tiers_[tier].name;
  loaded.whole_folder = damaged_.empty() && fetched_.empty() &&
                        std::all_of(candidate_.copies.begin(), candidate_.copies.end(),
                                    [](const Copy& copy) { return !copy.lacks_any(); });
  if (ranks_.leads() && !loaded.whole_folder)
    log_info("checkpoint {}: {} of its files came from other ranks' disks, {} damaged copies were passed over.",
             own_path_, fetched_.size(), damaged_.size());
  return loaded;
}

std::optional<LoadedCheckpoint> TierReader::load_step(int64_t step, const ChooseDestinations& destinations) {
  std::vector<Candidate> candidates = find_candidates();
  std::erase_if(candidates, [step](const Candidate& candidate) { return candidate.step != step; });
  return load_from(candidates, destinations);
}

std::optional<LoadedCheckpoint> TierReader::load_newest(const ChooseDestinations& destinations) {
  return load_from(find_candidates(), destinations);
}

std::optional<LoadedCheckpoint> TierReader::load_from(const std::vector<Candidate>& candidates,
                                                      const ChooseDestinations& destinations) {
  std::vector<std::string> refused;
  const auto failures = ranks_.tell("tiers that cannot be listed", list_failure_);
  const std::string tag = ranks_.tell("tag of what is fetched", random_tag()).front();
  for (const Candidate& candidate : candidates) {
    try {
      if (candidate.identity.empty()) throw FormatError("{}", candidate.why_not);
      LoadedCheckpoint loaded = Attempt(*this, candidate, tag).load(destinations);
      if (!refused.empty() && ranks_.leads())
        log_warning("Resuming from {}, not from a newer checkpoint: {} newer did not verify, see above.", loaded.path,
                    refused.size());
      return loaded;
    } catch (const FormatError& error) {
      refused.push_back(error.what());
    } catch (const IoError& error) {
      refused.push_back(error.what());
    }
    if (ranks_.leads()) log_warning("{}", refused.back());
  }
  if (refused.empty()) {
    for (const std::string& failure : failures)
      if (!failure.empty()) throw IoError("{}", failure);
    return std::nullopt;
  }
  std::string directories;
  for (const TierFolder& tier : tiers_) directories += (directories.empty() ? "" : ", ") + tier.directory;
  throw FormatError(
      "{}: none of its {} checkpoints verifies. The newest: {} Start afresh with --checkpoint.resume=never.",
      directories, refused.size(), refused[0]);
}

}  // namespace temper
