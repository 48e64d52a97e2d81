#include "rollout/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "core/error.h"
#include "model/device.h"

namespace temper {
namespace {

constexpr double kMegabyte = 1024.0 * 1024.0;

KvCacheShape cache_shape(const Transformer& model, const EngineOptions& options) {
  return kv_cache_shape(model.config(), model.compute_dtype(), options.block_size, model.device());
}

int64_t count_blocks(const ModelConfig& config, const KvCacheShape& shape, const EngineOptions& options) {
  if (options.max_num_seqs < 1)
    throw ConfigError("rollout.max_num_seqs is {}: at least one sequence must fit a step.", options.max_num_seqs);
  if (options.max_tokens_per_step < 1)
    throw ConfigError("max_tokens_per_step is {}: give at least 1.", options.max_tokens_per_step);
  if (options.block_size < 16 || options.block_size % 16 != 0)
    throw ConfigError("rollout.block_size is {}: give a multiple of 16.", options.block_size);
  const int64_t block_bytes = shape.bytes_per_block();
  const int64_t blocks_of_context = (config.max_position_embeddings + shape.block_size - 1) / shape.block_size;
  const int64_t useful_bytes = options.max_num_seqs * blocks_of_context * block_bytes;
  const int64_t free_bytes = free_memory_bytes(shape.device);
  int64_t bytes = options.kv_cache_memory_bytes;
  if (bytes == 0) bytes = std::max(free_bytes / 2, block_bytes);
  bytes = std::min(bytes, useful_bytes);
  if (bytes < block_bytes)
    throw ConfigError(
        "rollout.kv_cache_memory is {} bytes: one block of {} tokens takes {} bytes with this model. Give at "
        "least the blocks of one prompt and completion.",
        bytes, shape.block_size, block_bytes);
  if (bytes > free_bytes)
    throw ConfigError("rollout.kv_cache_memory is {} MB, but only {} MB of memory are free. Lower it, or leave it out.",
                      bytes / kMegabyte, free_bytes / kMegabyte);
  return bytes / block_bytes;
}

std::vector<bool> end_tokens(const ModelConfig& config, const Tokenizer& tokenizer) {
  std::vector<bool> ends(static_cast<size_t>(config.vocab_size), false);
  const auto mark = [&](int64_t id) {
    if (id >= 0 && id < config.vocab_size) ends[static_cast<size_t>(id)] = true;
  };
  for (const int64_t id : config.eos_token_ids) mark(id);
  for (const int32_t id : tokenizer.eos_ids()) mark(id);
  return ends;
}

bool is_unfinished(const Completion& completion) { return completion.finish_reason == FinishReason::kAborted; }

}  // namespace

Engine::Engine(const Transformer& model, const Tokenizer& tokenizer, const EngineOptions& options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(options),
      ends_completion_(end_tokens(model.config(), tokenizer)),
      cache_(cache_shape(model, options), count_blocks(model.config(), cache_shape(model, options), options)),
      pool_(cache_.num_blocks()),
      scheduler_({.max_num_seqs = options.max_num_seqs,
                  .max_tokens_per_step = options.max_tokens_per_step,
                  .block_size = options.block_size,
                  .enable_prefix_sharing = options.enable_prefix_sharing,
                  .enable_chunked_prefill = options.enable_chunked_prefill},
                 pool_) {}

void Engine::submit(GenerationRequest request) {
  const ModelConfig& config = model_.config();
  const std::string where = request.label.empty() ? format("request {}", request.id) : request.label;
  const auto prompt_length = static_cast<int64_t>(request.prompt_token_ids.size());
  TEMPER_CHECK(!groups_.contains(request.id), "request {} is in the engine already", request.id);
  check_sampling(request.sampling, where);
  if (request.num_completions < 1)
    throw ConfigError("{}: num_completions is {}: give at least 1.", where, request.num_completions);
  if (prompt_length == 0) throw ConfigError("{}: the prompt has no tokens. Give at least one.", where);
  if (prompt_length >= config.max_position_embeddings)
    throw ConfigError(
        "{}: the prompt has {} tokens, the model's context is {} and one token must fit behind it. Shorten it.", where,
        prompt_length, config.max_position_embeddings);
  for (const int32_t id : request.prompt_token_ids)
    if (id < 0 || id >= config.vocab_size)
      throw ConfigError(
          "{}: the prompt has token id {}, the model's vocabulary ends at {}. Was it made by another tokenizer?", where,
          id, config.vocab_size - 1);
  // The last token is drawn but never computed.
  const int64_t longest = std::min(prompt_length + request.sampling.max_new_tokens, config.max_position_embeddings) - 1;
  const int64_t num_blocks = (longest + options_.block_size - 1) / options_.block_size;
  if (num_blocks > pool_.num_blocks())
    throw ConfigError(
        "{}: its {} tokens of prompt and up to {} of completion need {} MB of KV cache, the whole cache has {} MB. "
        "Raise rollout.kv_cache_memory or ask for fewer tokens.",
        where, prompt_length, request.sampling.max_new_tokens, num_blocks * stats().block_bytes / kMegabyte,
        pool_.num_blocks() * stats().block_bytes / kMegabyte);

  std::vector<Completion> begun = std::exchange(request.begun, {});
  TEMPER_CHECK(begun.empty() || std::any_of(begun.begin(), begun.end(), is_unfinished), "{} is finished", where);
  TEMPER_CHECK(begun.empty() || static_cast<int>(begun.size()) == request.num_completions, "{}: {} of {} begun", where,
               begun.size(), request.num_completions);
  auto group = std::make_unique<Group>();
  group->request = std::move(request);
  group->num_unfinished = group->request.num_completions;
  for (int32_t i = 0; i < group->request.num_completions; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->group = group.get();
    sequence->index = i;
    sequence->token_ids = group->request.prompt_token_ids;
    if (group->request.environment) sequence->environment = group->request.environment();
    if (!begun.empty()) resume(*sequence, std::move(begun[static_cast<size_t>(i)]));
    group->num_unfinished -= sequence->finished;
    group->sequences.push_back(std::move(sequence));
  }
  scheduler_.add(*group);
  groups_.emplace(group->request.id, std::move(group));
}

// As if it had been preempted: its tokens are there, their keys and values are not.
void Engine::resume(Sequence& sequence, Completion begun) const {
  const std::vector<std::string>& stop = sequence.group->request.sampling.stop;
  sequence.finished = !is_unfinished(begun);
  sequence.completion = std::move(begun);
  for (const int32_t id : sequence.completion.token_ids) {
    sequence.token_ids.push_back(id);
    if (!stop.empty() && !tokenizer_.is_special(id)) sequence.stop.append(tokenizer_.token_bytes(id), stop);
  }
}

std::vector<GenerationResult> Engine::step() {
  step_tokens_.clear();
  if (idle()) return {};
  const Stopwatch clock;
  if (model_.version() != prefix_version_) scheduler_.forget_prefixes();
  prefix_version_ = model_.version();
  const std::vector<ScheduledSequence> plan = scheduler_.schedule();
  const at::Tensor hidden = run(plan);  // [T, hidden]
  std::vector<int64_t> rows;            // of hidden, one a drawer
  const std::vector<Sequence*> drawers = find_drawers(plan, rows);
  const std::vector<DrawnToken> tokens = draw(hidden, drawers, rows);
  for (size_t i = 0; i < drawers.size(); ++i) append(*drawers[i], tokens[i]);
  std::vector<GenerationResult> results = retire(drawers);

  ++stats_.num_steps;
  num_sequence_steps_ += static_cast<int64_t>(plan.size());
  stats_.busy_s += clock.seconds();
  return results;
}

// The model over the new tokens of every scheduled sequence, one behind the other.
at::Tensor Engine::run(const std::vector<ScheduledSequence>& plan) {
  at::NoGradGuard no_grad;
  cache_.reserve();
  stats_.peak_used_blocks = std::max(stats_.peak_used_blocks, pool_.num_used());
  int64_t num_tokens = 0;
  for (const ScheduledSequence& item : plan) num_tokens += item.num_new;
  last_step_ = {.num_tokens = num_tokens, .num_logit_rows = 0};
  at::Tensor token_ids = at::empty({num_tokens}, at::kLong);  // [T]
  at::Tensor positions = at::empty({num_tokens}, at::kLong);  // [T]
  at::Tensor slots = at::empty({num_tokens}, at::kLong);      // [T]
  auto* token_data = token_ids.mutable_data_ptr<int64_t>();
  auto* position_data = positions.mutable_data_ptr<int64_t>();
  auto* slot_data = slots.mutable_data_ptr<int64_t>();
  std::vector<PagedSequence> paged;
  paged.reserve(plan.size());
  int64_t row = 0;
  for (const auto& [sequence, num_new] : plan) {
    paged.push_back({.blocks = sequence->blocks.data(),
                     .context_length = sequence->num_computed + num_new,
                     .num_new = num_new,
                     .row_begin = row});
    for (int64_t i = 0; i < num_new; ++i, ++row) {
      const int64_t position = sequence->num_computed + i;
      const int64_t block = sequence->blocks[static_cast<size_t>(position / options_.block_size)];
      token_data[row] = sequence->token_ids[static_cast<size_t>(position)];
      position_data[row] = position;
      slot_data[row] = block * options_.block_size + position % options_.block_size;
    }
    if (num_new > 1 || sequence->completion.token_ids.empty()) stats_.num_prefill_tokens += num_new;
    sequence->num_computed += num_new;
  }

  const ModelConfig& config = model_.config();
  const double scale = model_.attention_scale();
  slots = slots.to(model_.device());
  return model_.hidden_states(token_ids, positions, [&](int64_t layer, const at::Tensor& qkv) {
    const at::Tensor q = qkv.narrow(1, 0, config.num_heads);
    const at::Tensor k = qkv.narrow(1, config.num_heads, config.num_kv_heads);
    const at::Tensor v = qkv.narrow(1, config.num_heads + config.num_kv_heads, config.num_kv_heads);
    store_kv(k, v, slots, cache_.layer(layer));
    at::Tensor out = at::empty({num_tokens, config.num_heads, config.head_dim}, qkv.options());
    paged_attention(q, cache_.layer(layer), paged, scale, out);
    return out;
  });
}

// The sequences whose last token is computed, with the row of its hidden state. A group's prompt serves all of its
// members: those that wait for it fork here.
std::vector<Sequence*> Engine::find_drawers(const std::vector<ScheduledSequence>& plan, std::vector<int64_t>& rows) {
  std::vector<Sequence*> drawers;
  std::vector<BlockCopy> copies;
  int64_t end = 0;
  for (const auto& [sequence, num_new] : plan) {
    end += num_new;
    if (sequence->num_uncomputed() > 0) continue;
    drawers.push_back(sequence);
    rows.push_back(end - 1);
    if (sequence->group->leader != sequence) continue;
    for (const Fork& fork : scheduler_.fork(*sequence)) {
      drawers.push_back(fork.sequence);
      rows.push_back(end - 1);
      if (fork.copy_to >= 0) copies.push_back({fork.copy_from, fork.copy_to});
    }
  }
  cache_.copy(copies);
  return drawers;
}

// Logits of a few rows at a time: they are the largest tensors of a step.
std::vector<DrawnToken> Engine::draw(const at::Tensor& hidden, const std::vector<Sequence*>& drawers,
                                     const std::vector<int64_t>& rows) {
  constexpr size_t kMaxRows = 64;
  std::vector<DrawnToken> tokens;
  tokens.reserve(drawers.size());
  for (size_t begin = 0; begin < drawers.size();) {
    std::vector<int64_t> logit_rows;  // distinct rows of hidden
    std::vector<Draw> draws;
    size_t end = begin;
    for (; end < drawers.size(); ++end) {
      if (logit_rows.empty() || rows[end] != logit_rows.back()) {
        if (logit_rows.size() == kMaxRows) break;
        logit_rows.push_back(rows[end]);
      }
      const Sequence& sequence = *drawers[end];
      const GenerationRequest& request = sequence.group->request;
      draws.push_back({.row = static_cast<int64_t>(logit_rows.size()) - 1,
                       .sampling = &request.sampling,
                       .key = {.seed = request.sampling.seed,
                               .serial = request.serial,
                               .completion = sequence.index,
                               .position = static_cast<int32_t>(sequence.completion.token_ids.size())}});
    }
    last_step_.num_logit_rows += static_cast<int64_t>(logit_rows.size());
    const at::Tensor index = at::tensor(logit_rows, at::kLong).to(hidden.device());
    const at::Tensor logits = to_host(model_.logits(hidden.index_select(0, index)));  // [rows, V]
    const std::vector<DrawnToken> part = draw_tokens(logits, draws);
    tokens.insert(tokens.end(), part.begin(), part.end());
    begin = end;
  }
  return tokens;
}

void Engine::append(Sequence& sequence, const DrawnToken& token) {
  const Group& group = *sequence.group;
  const SamplingParams& sampling = group.request.sampling;
  Completion& completion = sequence.completion;
  sequence.token_ids.push_back(token.token_id);
  completion.token_ids.push_back(token.token_id);
  completion.logprobs.push_back(token.logprob);
  completion.behavior_logprobs.push_back(token.behavior_logprob);
  completion.policy_versions.push_back(model_.version());
  completion.mask.push_back(1);
  sequence.last_token_s = group.clock.seconds();
  if (completion.token_ids.size() == 1) sequence.first_token_s = sequence.last_token_s;
  ++stats_.num_completion_tokens;

  const bool end_token = ends_completion_[static_cast<size_t>(token.token_id)] && !sampling.ignore_eos;
  const bool is_text = !end_token && !tokenizer_.is_special(token.token_id);
  const std::string& bytes = tokenizer_.token_bytes(token.token_id);
  const bool stop_string = is_text && !sampling.stop.empty() && sequence.stop.append(bytes, sampling.stop);
  if (end_token || stop_string)
    finish(sequence, FinishReason::kStop);
  else if (room_for(sequence) <= 0)
    finish(sequence, FinishReason::kLength);
  else if (is_text && sequence.environment && sequence.turn_end.append(bytes, sequence.environment->turn_ends()))
    end_turn(sequence);
  step_tokens_.push_back({.id = group.request.id,
                          .completion = sequence.index,
                          .token_id = token.token_id,
                          .logprob = token.logprob,
                          .is_text = is_text,
                          .finished = sequence.finished,
                          .finish_reason = completion.finish_reason});
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
  sequence.finished = true;
  sequence.completion.finish_reason = reason;
}

// Tokens that may still follow.
int64_t Engine::room_for(const Sequence& sequence) const {
  const auto num_tokens = static_cast<int64_t>(sequence.completion.token_ids.size());
  return std::min(sequence.group->request.sampling.max_new_tokens - num_tokens,
                  model_.config().max_position_embeddings - sequence.length());
}

// What the environment says becomes part of the completion, not drawn by the policy: it is computed with the next step,
// like a prompt's chunk.
void Engine::end_turn(Sequence& sequence) {
  Completion& completion = sequence.completion;
  const std::span<const int32_t> turn = std::span(completion.token_ids).subspan(sequence.turn_begin);
  std::optional<std::string> reply;
  try {
    reply = sequence.environment->step(tokenizer_.decode(turn, /*skip_special_tokens=*/false));
  } catch (const std::runtime_error& error) {
    completion.error = format("the environment failed: {}", error.what());
  }
  if (!reply) return finish(sequence, FinishReason::kStop);
  const std::vector<int32_t> tokens = tokenizer_.encode(*reply);
  // One more must fit behind them, for the policy to go on.
  if (static_cast<int64_t>(tokens.size()) >= room_for(sequence)) return finish(sequence, FinishReason::kLength);
  for (const int32_t id : tokens) {
    sequence.token_ids.push_back(id);
    completion.token_ids.push_back(id);
    completion.logprobs.push_back(0);
    completion.behavior_logprobs.push_back(0);
    completion.policy_versions.push_back(model_.version());
    completion.mask.push_back(0);
  }
  sequence.turn_begin = completion.token_ids.size();
  sequence.turn_end = {};
}

// Takes the finished sequences out and returns the groups that are complete with them.
std::vector<GenerationResult> Engine::retire(const std::vector<Sequence*>& drawers) {
  std::vector<Sequence*> finished;
  for (Sequence* sequence : drawers)
    if (sequence->finished) finished.push_back(sequence);
  scheduler_.retire(finished);
  std::vector<GenerationResult> results;
  for (Sequence* sequence : finished) {
    finish_text(*sequence);
    Group& group = *sequence->group;
    if (--group.num_unfinished > 0) continue;
    GenerationResult result{.id = group.request.id, .time_to_first_token_s = sequence->first_token_s};
    for (const auto& member : group.sequences) {
      const auto num_tokens = static_cast<double>(member->completion.token_ids.size());
      result.time_to_first_token_s = std::min(result.time_to_first_token_s, member->first_token_s);
      result.time_per_output_token_s.push_back(
          num_tokens > 1 ? (member->last_token_s - member->first_token_s) / (num_tokens - 1) : 0);
      result.completions.push_back(std::move(member->completion));
    }
    result.seconds = group.clock.seconds();
    results.push_back(std::move(result));
    groups_.erase(results.back().id);
  }
  return results;
}

void Engine::finish_text(Sequence& sequence) const {
  Completion& completion = sequence.completion;
  const SamplingParams& sampling = sequence.group->request.sampling;
  std::span<const int32_t> ids = completion.token_ids;
  if (!ids.empty() && ends_completion_[static_cast<size_t>(ids.back())] && !sampling.ignore_eos)
    ids = ids.first(ids.size() - 1);
  completion.text = cut_at_stop(tokenizer_.decode(ids), sampling.stop);
}

std::vector<Completion> Engine::cancel(int64_t id) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return {};
  std::vector<Sequence*> unfinished;
  std::vector<Completion> completions;
  for (const auto& sequence : found->second->sequences) {
    if (sequence->finished) continue;
    unfinished.push_back(sequence.get());
    sequence->completion.finish_reason = FinishReason::kAborted;
    finish_text(*sequence);
  }
  scheduler_.retire(unfinished);
  for (const auto& sequence : found->second->sequences) completions.push_back(std::move(sequence->completion));
  groups_.erase(found);
  return completions;
}

void Engine::release() {
  TEMPER_CHECK(idle() && pool_.num_used() == 0, "{} requests are in the engine", groups_.size());
  scheduler_.forget_prefixes();
  cache_.release();
}

void Engine::recompute_cache() {
  scheduler_.preempt_all();
  scheduler_.forget_prefixes();
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.num_preemptions = scheduler_.num_preemptions();
  stats.num_prefix_tokens = scheduler_.num_prefix_tokens();
  stats.num_running = scheduler_.num_running();
  stats.num_waiting = scheduler_.num_waiting();
  stats.num_blocks = pool_.num_blocks();
  stats.num_used_blocks = pool_.num_used();
  stats.block_bytes = cache_.shape().bytes_per_block();
  if (stats.num_steps > 0)
    stats.occupancy =
        static_cast<double>(num_sequence_steps_) / static_cast<double>(stats.num_steps * options_.max_num_seqs);
  return stats;
}

}  // namespace temper
