#!/usr/bin/env python3
"""What asynchrony gives where rollouts are the bound: synchronous training with workers (max_staleness 0) beside max_staleness 1, 2 and 4,
the same quickstart model from the same SFT, in wall time and in steps.

    .deps/python/bin/python bench/async_speedup.py [--seeds 42 43 44] [--steps 150] [--pace 1] [--out docs/images/async_speedup.svg]

Two cores cannot hold trainer and workers that are both busy, so the workers are paced: each group waits in its reward for a log-normal time
(bench/paced_reward.py) whose mean makes the generation of a step take --pace times its training, which is measured first. --unpaced leaves the
waits out: then trainer and workers (--workers 1 or 2) take the cores from each other. Needs scripts/setup.sh --python and scripts/build.sh. Prints
one JSON line a run and a table (Markdown)."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

from curves import plotting, save, tidy

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
[run]
dir = "{folder}"
[model]
path = "{model}"
[data]
task = "arithmetic"
max_prompt_length = 16
generated = {{max_operand = 49}}
[eval]
num_prompts = 250
every_steps = 0
[rollout]
num_generations = 16
max_completion_length = 6
max_num_seqs = 16
[reward]
{reward}
[algo]
preset = "grpo"
kl_coef = 0.001
[train]
num_prompts_per_step = {prompts}
max_steps = {steps}
[optim]
betas = [0.9, 0.99]
learning_rate = 2e-4
warmup_steps = 20
[checkpoint]
local_every_steps = 0
[log]
tensorboard = false
"""
PACED = """functions = ["task", "command"]
weights = [1.0, 0.0]
command = "python3 {pace} {mean:.4f} pace"
"""
UNPACED = 'functions = ["task"]'
STALENESS = [0, 1, 2, 4]
COLORS = {0: "#718096", 1: "#2b6cb0", 2: "#2f855a", 4: "#c05621"}


def temper(arguments, *words):
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    done = subprocess.run([arguments.temper, *map(str, words)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def configuration(arguments, folder, model, mean, steps):
    path = folder / "async.toml"
    reward = UNPACED if arguments.unpaced else PACED.format(pace=ROOT / "bench/paced_reward.py", mean=mean)
    path.write_text(CONFIG.format(folder=folder, model=model, reward=reward, prompts=arguments.prompts, steps=steps))
    return path


def steps_of(folder, name):
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], [r for r in records if "eval/arithmetic/accuracy" in r]


def run(arguments, folder, model, mean, staleness, seed):
    name = f"s{staleness}_{seed}"
    config = configuration(arguments, folder, model, mean, arguments.steps)
    temper(arguments, "run", config, f"--run.name={name}", f"--run.seed={seed}", f"--rollout.workers={arguments.workers}", f"--async.max_staleness={staleness}")
    steps, evaluations = steps_of(folder, name)
    # Workers start, and the first groups come, before the first step is over: its end is where the clock starts.
    seconds = [record["time"] - steps[0]["time"] for record in steps]
    idle = statistics.mean(record["async/trainer/idle_ratio"] for record in steps[5:])
    stale = statistics.mean(record["training/off_policy/trajectory_staleness/mean"] for record in steps[5:])
    result = {"max_staleness": staleness, "seed": seed, "seconds": seconds[-1], "step_s": seconds[-1] / (len(steps) - 1), "trainer_idle": idle,
              "staleness": stale, "accuracy": evaluations[-1]["eval/arithmetic/accuracy"], "reward_end": statistics.mean(r["rewards/task/mean"] for r in steps[-20:])}
    print(json.dumps(result), flush=True)
    return result | {"time": seconds, "reward": [record["rewards/task/mean"] for record in steps]}


def smooth(values, width=10):
    return [statistics.mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def draw(path, runs):
    plot = plotting()
    figure, (by_time, by_step) = plot.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for staleness in STALENESS:
        for i, result in enumerate(r for r in runs if r["max_staleness"] == staleness):
            label = ("synchronous" if staleness == 0 else f"max_staleness {staleness}") if i == 0 else None
            by_time.plot(result["time"], smooth(result["reward"]), color=COLORS[staleness], linewidth=1, label=label)
            by_step.plot(smooth(result["reward"]), color=COLORS[staleness], linewidth=1)
    by_time.set(xlabel="seconds", ylabel="reward, mean of 10 steps")
    by_step.set(xlabel="step")
    by_time.legend(frameon=False)
    for axis in (by_time, by_step):
        tidy(axis)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs/async_speedup")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pace", type=float, default=1.0, help="mean generation of a step, in times of its training")
    parser.add_argument("--unpaced", action="store_true", help="workers as fast as the cores let them")
    parser.add_argument("--out", help="SVG to draw")
    arguments = parser.parse_args()
    if arguments.out:
        plotting()  # missing: say so before the measurements
    folder = arguments.folder / time.strftime("%Y%m%d_%H%M%S")
    folder.mkdir(parents=True)
    # The SFT half of the quickstart, once; then a few steps without pace or workers, for the time of training.
    temper(arguments, "run", ROOT / "configs/quickstart.toml", f"--run.dir={folder}", "--run.name=start", "--stage.grpo.train.max_steps=1", "--eval.num_prompts=0")
    model = folder / "start/stages/sft/model"
    if not model.exists():
        model = folder / "start/model"
    config = configuration(arguments, folder, model, 0.0, 12)
    temper(arguments, "run", config, "--run.name=training")
    steps, _ = steps_of(folder, "training")
    training = statistics.median(r["timing_s/step"] - r["timing_s/gen"] - r["timing_s/reward"] for r in steps[2:])
    mean = arguments.pace * training * arguments.workers / arguments.prompts
    print(json.dumps({"training_s": training, "group_s": mean, "workers": arguments.workers}), flush=True)
    runs = [run(arguments, folder, model, mean, staleness, seed) for seed in arguments.seeds for staleness in STALENESS]
    print("\n| max_staleness | s a step | speed-up | trainer idle | staleness | reward of the last 20 steps | accuracy |\n| --- | --- | --- | --- | --- | --- | --- |")
    of = {s: [r for r in runs if r["max_staleness"] == s] for s in STALENESS}
    mean_of = lambda s, key: statistics.mean(r[key] for r in of[s])
    spread_of = lambda s, key: statistics.stdev(r[key] for r in of[s]) / len(of[s]) ** 0.5 if len(of[s]) > 1 else 0.0
    for s in STALENESS:
        print(f"| {s} | {mean_of(s, 'step_s'):.3f} | {mean_of(0, 'step_s') / mean_of(s, 'step_s'):.2f} | {mean_of(s, 'trainer_idle'):.0%} | {mean_of(s, 'staleness'):.2f} | "
              f"{mean_of(s, 'reward_end'):.3f} ± {spread_of(s, 'reward_end'):.3f} | {mean_of(s, 'accuracy'):.3f} ± {spread_of(s, 'accuracy'):.3f} |")
    if arguments.out:
        draw(arguments.out, runs)


if __name__ == "__main__":
    main()
