// The configuration of a run: one plain struct a section, filled by load_config (load.h) and never changed afterwards.
// The initialisers here are the defaults; the table in table.cpp gives every key its range and help, and from both come
// the parser, --help, the dump and docs/configuration.md. Keys of [algo] are specified in docs/algorithms.md.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/choices.h"

namespace temper {

struct RunSection {
  std::string name;          // empty in the file: the configuration file's stem
  std::string dir = "runs";  // the run lives in dir/name
  int64_t seed = 42;
  bool deterministic = false;
  Device device = Device::kAuto;
  Dtype dtype = Dtype::kAuto;
  bool operator==(const RunSection&) const = default;
};

// A new model with random weights. 0 and "" stand for what the comment says.
struct ModelInit {
  std::string family;  // llama, qwen2, qwen3; empty: no [model] init
  int64_t hidden_size = 256;
  int64_t intermediate_size = 0;  // 0: 8/3 of hidden_size, rounded up to a multiple of 32
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 0;  // 0: num_heads
  int64_t head_dim = 0;      // 0: hidden_size / num_heads
  int64_t vocab_size = 0;    // 0: the tokenizer's
  int64_t max_position_embeddings = 2048;
  double rope_theta = 10000;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = true;
  std::string tokenizer = "byte";  // or a directory with tokenizer.json
  bool operator==(const ModelInit&) const = default;
};

struct ModelSection {
  // Directories in the Hugging Face layout, or "stage:NAME": what that earlier stage of the run made (stage_models.h).
  std::string path;  // empty: init
  ModelInit init;
  std::string reference;  // empty: the model at the stage's start
  std::string teacher;
  bool operator==(const ModelSection&) const = default;
};

struct DataSection {
  std::string path;  // JSONL; empty: task
  std::string task;  // name of a generated task
  std::string eval_path;
  std::string prompt_field = "prompt";
  std::string answer_field = "answer";
  std::string completion_field = "completion";
  std::string prompt_template;      // {field} stands for that field of the line; empty: the prompt as it is
  int64_t max_prompt_length = 512;  // tokens; 0: no limit
  double held_out_share = 0;        // of a file's prompts, by a hash of their text
  bool shuffle = true;
  // Parameters of generated tasks; each task uses those that concern it.
  struct Generated {
    int64_t seed = 1;               // of the problem stream; run.seed does not change it
    int64_t max_operand = 99;       // arithmetic, chain_sum
    int64_t num_items = 4;          // chain_sum: terms; sort, copy, reverse, count: letters
    int64_t num_worked = 2000;      // worked problems for sft, pairs for dpo and reward models
    double worked_error_share = 0;  // of the worked problems: one off in the answer
    double held_out_share = 0.1;    // of all problems; add1 has fixed sets
    bool operator==(const Generated&) const = default;
  } generated;
  bool operator==(const DataSection&) const = default;
};

struct EvalSection {
  int64_t every_steps = 0;    // 0: before the first and after the last step only
  int64_t num_prompts = 200;  // 0: no evaluation
  int64_t num_completions = 1;
  double temperature = 0;
  std::string bits_per_char_path;
  bool operator==(const EvalSection&) const = default;
};

struct RolloutSection {
  RolloutKind source = RolloutKind::kAuto;
  int64_t num_generations = 8;
  int64_t max_completion_length = 256;  // tokens
  double temperature = 1;
  double top_p = 1;
  int64_t top_k = 0;  // 0: all
  double min_p = 0;
  std::vector<std::string> stop;
  int64_t workers = 0;
  int64_t max_num_seqs = 64;
  int64_t kv_cache_memory = 0;  // MiB; 0: what max_num_seqs sequences need, at most half the free memory
  int64_t block_size = 16;      // tokens
  bool enable_prefix_sharing = true;
  bool enable_chunked_prefill = true;
  RolloutDtype dtype = RolloutDtype::kAuto;  // auto: run.dtype, on the trainer's own copy of the weights
  double teacher_share = 0;                  // of a step's prompts, whose completions the teacher generates
  RolloutEnvironment environment = RolloutEnvironment::kNone;
  int64_t max_turns = 8;  // that the environment answers
  bool operator==(const RolloutSection&) const = default;
};

struct RewardSection {
  std::vector<std::string> functions;  // after loading: ["task"] for a generated task where none is given
  std::vector<double> weights;         // one a function; empty: 1 each
  double timeout_s = 30;               // for one function on one group
  std::string model;                   // directory or "stage:NAME" of the reward model, for the function "model"
  std::string command;                 // for /bin/sh, for the function "command"
  int64_t processes = 1;               // command, code: programs at once
  struct Code {
    std::string tests_field = "tests";
    double timeout_s = 5;     // of one program with one test
    int64_t memory_mb = 512;  // of one program
    bool operator==(const Code&) const = default;
  } code;
  struct Numeric {
    double tolerance = 1e-6;
    bool operator==(const Numeric&) const = default;
  } numeric;
  struct Regex {
    std::string pattern;
    bool operator==(const Regex&) const = default;
  } regex;
  struct Format {
    std::string pattern;
    bool operator==(const Format&) const = default;
  } format;
  struct Length {
    int64_t target = 0;  // tokens
    bool operator==(const Length&) const = default;
  } length;
  bool operator==(const RewardSection&) const = default;
};

// Bound of one rejection test of algo.rollout_rs: k1 tests keep log lo <= k1 <= log hi, the others k <= hi.
struct RejectionBound {
  double lo = 0;
  double hi = 0;
  bool operator==(const RejectionBound&) const = default;
};

struct AlgoSection {
  Preset preset = Preset::kGrpo;

  AdvEstimator adv_estimator = AdvEstimator::kGrpo;
  ScaleRewards scale_rewards = ScaleRewards::kGroup;
  double advantage_eps = 1e-4;
  std::optional<bool> whiten_advantages;  // after loading always set; none: see whitens()
  double gamma = 1;
  double lam = 1;
  bool gae_skip_masked = true;
  bool filter_groups = false;
  struct OverlongBuffer {
    int64_t len = 0;  // tokens; 0: off
    double penalty_factor = 1;
    bool operator==(const OverlongBuffer&) const = default;
  } overlong_buffer;
  bool mask_truncated_completions = false;

  PolicyLoss policy_loss = PolicyLoss::kClip;
  LossAggMode loss_agg_mode = LossAggMode::kSeqMeanTokenMean;
  double clip_ratio_low = 0.2;
  double clip_ratio_high = 0.2;
  double clip_ratio_c = 3;  // 0: off
  CispoBound cispo_bound = CispoBound::kRelative;
  double sapo_tau_pos = 1;
  double sapo_tau_neg = 1.05;
  double clip_cov_ratio = 0.0002;
  double clip_cov_lb = 1;
  double clip_cov_ub = 5;
  double kl_cov_ratio = 0.0002;
  double kl_cov_coef = 0.1;

  double kl_coef = 0;
  KlEstimatorKind kl_estimator = KlEstimatorKind::kK3;
  bool kl_clamp = false;
  KlPlacement kl_placement = KlPlacement::kLoss;
  struct KlCtrl {
    KlCtrlType type = KlCtrlType::kFixed;
    double target = 0.1;
    double horizon = 10000;
    bool operator==(const KlCtrl&) const = default;
  } kl_ctrl;
  double entropy_coef = 0;

  RolloutIs rollout_is = RolloutIs::kNone;
  RolloutIsMode rollout_is_mode = RolloutIsMode::kTruncate;
  double rollout_is_max = 2;
  double rollout_is_min = 0;
  std::map<std::string, RejectionBound> rollout_rs;  // by test: token_k1, seq_mean_k3, …
  RsDenominator rollout_rs_denominator = RsDenominator::kKept;

  double value_clip = 0.5;  // 0: off
  double vf_coef = 1;
  double distill_coef = 0;
  double distill_discount = 0;
  DistillLoss distill_loss = DistillLoss::kNone;
  double distill_loss_coef = 1;
  double distill_beta = 0.5;
  double distill_temperature = 1;
  int64_t distill_top_k = 0;  // 0: the whole vocabulary
  double dpo_beta = 0.1;
  double label_smoothing = 0;

  int64_t num_epochs = 1;
  int64_t num_minibatches = 1;
  int64_t max_refills = 10;
  double early_stop_kl = 0;  // 0: off

  bool operator==(const AlgoSection&) const = default;

  bool whitens() const;
  bool trains_on_rollouts() const;  // false: sft, dpo, ipo, reward_model learn from given completions
  bool trains_on_pairs() const;     // dpo, ipo, reward_model: of a chosen and a rejected completion
  bool is_ratio_loss() const;       // one of the eight losses of the ratio policy/old
  bool compares_group() const;      // advantages that need num_generations >= 2
  bool needs_reference() const;
  bool needs_teacher() const;
  bool needs_critic() const { return trains_on_rollouts() && adv_estimator == AdvEstimator::kGae; }
};

// A preset's keys, everything else at its default.
AlgoSection algo_preset(Preset preset);

struct TrainSection {
  int64_t num_prompts_per_step = 8;  // sft: examples a step; dpo, ipo, reward_model: pairs a step
  int64_t max_steps = 100;
  int64_t max_tokens_per_micro_batch = 4096;
  bool recompute = false;
  Shard shard = Shard::kNone;
  int64_t tensor_parallel = 1;
  int64_t replicas = 1;
  int64_t ranks = 1;
  double comm_timeout_s = 600;
  int64_t max_restarts = 3;
  bool operator==(const TrainSection&) const = default;
};

struct OptimSection {
  double learning_rate = 1e-6;
  LrScheduler lr_scheduler_type = LrScheduler::kConstant;
  int64_t warmup_steps = 0;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  double max_grad_norm = 1;  // 0: no clipping
  bool operator==(const OptimSection&) const = default;
};

struct CriticSection {
  std::string path;              // directory or "stage:NAME"; empty: the policy's body at the stage's start, a new head
  bool shared_backbone = false;  // the policy's body with a second head, instead of a model of its own
  double learning_rate = 0;      // 0: optim.learning_rate; see critic_learning_rate()
  bool operator==(const CriticSection&) const = default;
};

struct AsyncSection {
  int64_t max_staleness = 0;  // policy versions
  StalenessPolicy staleness_policy = StalenessPolicy::kDrop;
  bool in_flight_updates = false;
  double lease_timeout_s = 600;
  WeightTransport weight_transport = WeightTransport::kMessages;
  std::string bind = "127.0.0.1";  // HOST or HOST:PORT, of the hub
  std::string keys;                // folder; empty: keys in the run directory; none: plain text
  bool operator==(const AsyncSection&) const = default;
};

struct CheckpointSection {
  std::string ram_dir;                // empty: no such tier
  int64_t ram_every_steps = 10;       // 0: only where the local disk fails
  std::string local_dir;              // empty: checkpoints in the run directory
  int64_t local_every_steps = 50;     // 0: at the end of a stage only
  std::string durable_dir;            // empty: no such tier
  int64_t durable_every_steps = 500;  // 0: at the end of a stage only
  int64_t keep_local = 2;
  int64_t keep_durable = 2;
  int64_t max_write_mb_per_s = 0;     // 0: no limit
  int64_t replicate = 0;              // other nodes that hold a copy of a node's shards: 0 or 1
  Dtype export_dtype = Dtype::kAuto;  // auto: the dtype the model was loaded in, f32 for init
  std::string resume = "auto";        // auto, never, or the path of a checkpoint
  bool allow_other_data = false;
  bool operator==(const CheckpointSection&) const = default;
};

struct LogSection {
  bool tensorboard = true;
  int64_t every_steps = 1;
  int64_t completions = 16;  // completions of a step that go to completions.jsonl; 0: none
  std::string prometheus;    // HOST:PORT of the endpoint; empty: none
  bool operator==(const LogSection&) const = default;
};

struct Sections {
  RunSection run;
  ModelSection model;
  DataSection data;
  EvalSection eval;
  RolloutSection rollout;
  RewardSection reward;
  AlgoSection algo;
  TrainSection train;
  OptimSection optim;
  CriticSection critic;
  AsyncSection async;
  CheckpointSection checkpoint;
  LogSection log;
  bool operator==(const Sections&) const = default;

  double critic_learning_rate() const { return critic.learning_rate > 0 ? critic.learning_rate : optim.learning_rate; }
  // What is trained on comes from rollout workers through the hub, not from an engine in the trainer's process.
  bool uses_hub() const {
    const bool wanted =
        rollout.source == RolloutKind::kAuto ? rollout.workers > 0 : rollout.source == RolloutKind::kHub;
    return wanted && algo.trains_on_rollouts();
  }
};

// One stage with everything resolved: presets, [[stage]] and command line.
struct StageConfig : Sections {
  std::string name;
  // True: starts from its own [model]. False: from what an earlier stage made, which start_stage() (stage_models.h)
  // tells; model.path is then "stage:NAME", or it and model.init are the root's and say nothing about this stage.
  // Always true for the first stage.
  bool own_model = true;
  bool operator==(const StageConfig&) const = default;
};

// The root sections are what the stages started from; take a stage's settings from the stage.
struct Config : Sections {
  std::vector<StageConfig> stages;    // at least one; without [[stage]] one named after algo.preset
  std::vector<std::string> warnings;  // for the log: accepted, but without effect or doubtful

  std::string run_dir() const { return run.dir + "/" + run.name; }
};

}  // namespace temper
