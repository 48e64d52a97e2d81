#!/usr/bin/env bash
# How fast does each algorithm learn? One model, taught arithmetic by a careless teacher (SFT, as in configs/quickstart.toml),
# is the start of every run; each algorithm then learns from the task's reward alone, over several seeds. Then distillation:
# the same start learns from a teacher that GRPO made, against GRPO without a teacher.
#   bench/algorithms.sh [--seeds "1 2 3 4 5"] [--steps 200] [--out runs/algorithms] [--temper build/release/temper]
# Prints the tables of docs/algorithms.md (Markdown). One thread a run, as many runs at once as there are cores.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds="1 2 3 4 5" steps=200 out=runs/algorithms temper=build/release/temper
while [ $# -gt 0 ]; do
  case "$1" in
    --seeds) seeds="$2" ;; --steps) steps="$2" ;; --out) out="$2" ;; --temper) temper="$2" ;;
    *) echo "unknown option $1; see the head of bench/algorithms.sh" >&2; exit 2 ;;
  esac
  shift 2
done
export OMP_NUM_THREADS=1
mkdir -p "$out"

common='
[data]
task = "arithmetic"
max_prompt_length = 16
generated = {max_operand = 49, num_worked = 20000, worked_error_share = 0.6}
[log]
tensorboard = false
completions = 0
[checkpoint]
local_every_steps = 0
'
cat > "$out/sft.toml" <<TOML
[model]
init = {family = "llama", hidden_size = 128, num_layers = 4, num_heads = 4, num_kv_heads = 2, intermediate_size = 384, max_position_embeddings = 64}
$common
[eval]
num_prompts = 250
[rollout]
max_completion_length = 6
[optim]
betas = [0.9, 0.99]
[[stage]]
name = "sft"
algo.preset = "sft"
train = {num_prompts_per_step = 128, max_steps = 2400}
optim = {learning_rate = 2e-3, lr_scheduler_type = "cosine", warmup_steps = 20}
TOML
cat > "$out/rl.toml" <<TOML
[model]
path = "$out/sft/model"
$common
[algo]
preset = "grpo"
kl_coef = 0.001
[eval]
num_prompts = 250
every_steps = 10
[rollout]
max_completion_length = 6
num_generations = 16
[train]
num_prompts_per_step = 32
max_steps = $steps
[optim]
betas = [0.9, 0.99]
learning_rate = 2e-4
lr_scheduler_type = "cosine"
warmup_steps = 10
TOML
run() { "$temper" run "$@" --run.dir="$out" --log-level=warning </dev/null; }
run "$out/sft.toml"
# The teacher: GRPO for twice as long.
run "$out/rl.toml" --run.name=teacher --run.seed=100 --train.max_steps=$((2 * steps)) --eval.every_steps=0

jobs() {
  local seed preset
  for seed in $seeds; do
    for preset in grpo dapo dr_grpo gspo rloo; do echo "$preset-$seed --run.seed=$seed --algo.preset=$preset"; done
    echo "ppo-$seed --run.seed=$seed --algo.preset=ppo --algo.num_minibatches=2 --critic.learning_rate=5e-4"
    for preset in distill gkd; do
      echo "$preset-$seed --run.seed=$seed --algo.preset=$preset --algo.kl_coef=0 --model.teacher=$out/teacher/model --rollout.num_generations=4 --optim.learning_rate=5e-4"
    done
  done
}
jobs | while read -r name options; do printf '%s\0' "$temper run $out/rl.toml --run.dir=$out --run.name=$name --log-level=warning $options"; done |
  xargs -0 -P "$(nproc)" -I{} bash -c '{} </dev/null'

python3 - "$out" "$steps" "$seeds" <<'PY'
import json, pathlib, statistics, sys
out, steps, seeds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split()

def curve(name):
    """[(step, accuracy, completion tokens generated so far)], with what was generated between evaluations."""
    tokens, points = 0.0, []
    for line in open(out / name / "metrics.jsonl"):
        record = json.loads(line)
        completions = 32 * (4 if name.startswith(("distill", "gkd")) else 16)
        if "completions/mean_length" in record:
            tokens += completions * record["completions/mean_length"]
        if "eval/arithmetic/accuracy" in record:
            points.append((record["step"], record["eval/arithmetic/accuracy"], tokens))
    return points

def first(points, accuracy, field):
    return next((point[field] for point in points if point[1] >= accuracy), None)

def spread(values):
    return f"{statistics.mean(values):.0f} ± {statistics.stdev(values):.0f}" if len(values) > 1 else f"{values[0]:.0f}"

start = curve("grpo-" + seeds[0])[0][1]
teacher = curve("teacher")[-1][1]
print(f"Start {start:.1%}; {len(seeds)} seeds; mean ± standard deviation.\n")
print(f"| algorithm | steps to 90% | accuracy after {steps} steps | seeds that reached 90% |\n| --- | --- | --- | --- |")
for preset in ("grpo", "dapo", "dr_grpo", "gspo", "rloo", "ppo"):
    curves = [curve(f"{preset}-{seed}") for seed in seeds]
    reached = [step for step in (first(points, 0.9, 0) for points in curves) if step is not None]
    last = [100 * points[-1][1] for points in curves]
    print(f"| `{preset}` | {spread(reached) if reached else 'never'} | {statistics.mean(last):.1f}% ± {statistics.stdev(last) if len(last) > 1 else 0:.1f} | {len(reached)} of {len(seeds)} |")
print(f"\nTeacher {teacher:.1%}; completion tokens generated until 95% of it ({0.95 * teacher:.1%}).\n")
print("| algorithm | completion tokens | steps | seeds that reached it |\n| --- | --- | --- | --- |")
for preset in ("gkd", "distill", "grpo"):
    curves = [curve(f"{preset}-{seed}") for seed in seeds]
    tokens = [value for value in (first(points, 0.95 * teacher, 2) for points in curves) if value is not None]
    at = [value for value in (first(points, 0.95 * teacher, 0) for points in curves) if value is not None]
    print(f"| `{preset}` | {spread(tokens) if tokens else 'never'} | {spread(at) if at else 'never'} | {len(tokens)} of {len(seeds)} |")
PY
