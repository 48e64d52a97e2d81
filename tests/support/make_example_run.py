#!/usr/bin/env python3
"""Writes a run directory with invented but plausible figures: SFT, then GRPO on arithmetic. For looking at reports
(scripts/look_at_report.sh) without training anything.

usage: make_example_run.py DIR [GRPO_STEPS]
"""
import json
import math
import pathlib
import random
import sys

CONFIG = """[run]
name = "quickstart"
seed = 42

[model.init]
family = "qwen3"
hidden_size = 128
num_layers = 4

[data]
task = "arithmetic"

[algo]
kl_coef = 0.01

[reward]
functions = ["task", "length"]
length.target = 8

[[stage]]
name = "sft"
algo.preset = "sft"
train.max_steps = 300

[[stage]]
name = "grpo"
algo.preset = "grpo"
algo.kl_coef = 0.01
train.max_steps = 120
"""


class Run:
    def __init__(self, folder):
        self.random = random.Random(7)
        self.metrics = open(folder / "metrics.jsonl", "w")
        self.completions = open(folder / "completions.jsonl", "w")
        self.time = 1763928470.25
        self.version = 0

    def noise(self, scale):
        return self.random.gauss(0, scale)

    def record(self, stage, step, values):
        head = {"stage": stage, "step": step, "policy_version": self.version, "time": round(self.time, 3)}
        self.metrics.write(json.dumps({**head, **values}) + "\n")

    def sft(self, steps):
        self.time += 2
        self.record("sft", 0, {"eval/arithmetic/accuracy": 0.0, "eval/prose/bits_per_char": 4.93})
        for step in range(1, steps + 1):
            self.version += 1
            progress = step / steps
            step_s = 0.35 + abs(self.noise(0.02))
            self.time += step_s
            values = {"loss": 0.35 + 2.9 * math.exp(-9 * progress) + self.noise(0.02), "grad_norm": 0.6 + 4 * math.exp(-12 * progress) + abs(self.noise(0.15)),
                      "learning_rate": 1e-3 * min(1, step / 30) * 0.5 * (1 + math.cos(math.pi * progress)), "num_tokens": 1024 + self.random.randint(-40, 40),
                      "timing_s/step": step_s, "timing_s/update_actor": step_s * 0.93,
                      "perf/throughput": 1024 / step_s, "perf/max_memory_allocated_gb": 0.41}
            if step % 50 == 0:
                values["eval/arithmetic/accuracy"] = round(min(0.48, 0.5 * progress ** 1.3 + self.noise(0.01)), 3)
                if step == steps:
                    values["eval/prose/bits_per_char"] = 5.02
            self.record("sft", step, values)

    def problem(self):
        a, b = self.random.randint(2, 99), self.random.randint(2, 99)
        return f"{a} + {b} = ?", str(a + b)

    def group(self, step, skill):
        prompt, answer = self.problem()
        completions = []
        for _ in range(8):
            right = self.random.random() < skill
            text = f"{prompt[:-1]}{answer if right else int(answer) + self.random.choice([-10, 10, 1, -1])}"
            if step < 15 and self.random.random() < 0.3:
                text += "\nSo <b>we</b> carry the one & get " + " ".join(str(self.random.randint(0, 9)) for _ in range(40))
            rewards = {"task": 1.0 if right else 0.0, "length": round(max(0.0, 1 - abs(len(text) - 14) / 60), 3)}
            completions.append({"text": text, "rewards": rewards, "advantage": 0, "finish_reason": "length" if "carry" in text else "stop"})
        totals = [sum(c["rewards"].values()) for c in completions]
        mean = sum(totals) / 8
        spread = (sum((t - mean) ** 2 for t in totals) / 7) ** 0.5
        for completion, t in zip(completions, totals):
            completion["advantage"] = (t - mean) / (spread + 1e-4)
        if step == 60:
            completions[3]["rewards"]["task"] = None
            completions[3]["error"] = "reward task: gave no answer within 30 s"
        self.completions.write(json.dumps({"stage": "grpo", "step": step, "prompt": prompt, "answer": answer, "completions": completions}) + "\n")

    def grpo(self, steps):
        self.time += 3
        self.record("grpo", 0, {"eval/arithmetic/accuracy": 0.475, "eval/arithmetic/avg@8": 0.41, "eval/arithmetic/pass@8": 0.79, "eval/prose/bits_per_char": 5.02})
        for step in range(1, steps + 1):
            self.version += 1
            skill = 0.42 + 0.55 / (1 + math.exp(-10 * (step / steps - 0.38)))
            reward = min(1.0, max(0.0, skill + self.noise(0.035)))
            length = 10 + 22 * math.exp(-step / steps * 8) + abs(self.noise(0.6))
            parts = {"gen": 0.9 + length * 0.012 + abs(self.noise(0.06)), "reward": 0.004, "old_log_prob": 0.21 + abs(self.noise(0.01)), "ref": 0.2 + abs(self.noise(0.01)),
                     "update_actor": 0.72 + abs(self.noise(0.03)), "update_weights": 0.03, "save_checkpoint_blocked": 0.55 if step % 25 == 0 else 0.0}
            step_s = sum(parts.values()) + 0.05
            self.time += step_s
            tokens = 64 * length
            values = {"loss": -0.002 + 0.004 * step / steps + self.noise(0.004), "policy_loss": -0.003 + self.noise(0.004), "reward": reward,
                      "reward_std": 0.5 * (1 - abs(2 * reward - 1)), "rewards/task/mean": reward, "rewards/task/std": 0.4 * (1 - reward), "rewards/length/mean": min(1, 0.7 + 0.3 * step / steps + self.noise(0.01)),
                      "rewards/length/std": 0.1, "frac_reward_zero_std": min(1, max(0, reward - 0.35 + self.noise(0.06))),
                      "kl": 0.11 * (1 - math.exp(-3 * step / steps)) + abs(self.noise(0.004)), "entropy": 0.55 * math.exp(-2.4 * step / steps) + abs(self.noise(0.01)),
                      "clip_ratio/region_mean": abs(self.noise(0.004)), "clip_ratio/low_mean": abs(self.noise(0.002)), "clip_ratio/high_mean": abs(self.noise(0.002)),
                      "grad_norm": 0.4 + abs(self.noise(0.12)), "learning_rate": 2e-4 * (1 - step / steps) + 2e-6, "num_tokens": round(tokens),
                      "completions/mean_length": length, "completions/min_length": max(4, round(length * 0.5)), "completions/max_length": min(64, round(length * 2.6)),
                      "completions/clipped_ratio": max(0.0, 0.14 * math.exp(-step / 14) + self.noise(0.003)),
                      "sampling/sampling_logp_difference/mean": 2.1e-6 + abs(self.noise(3e-7)), "sampling/sampling_logp_difference/max": 2.4e-5 + abs(self.noise(8e-6)),
                      "sampling/importance_sampling_ratio/min": 1 - abs(self.noise(2e-5)), "sampling/importance_sampling_ratio/mean": 1.0, "sampling/importance_sampling_ratio/max": 1 + abs(self.noise(2e-5)),
                      "training/off_policy/trajectory_staleness/mean": 0, "training/groups_failed": 0,
                      "timing_s/step": step_s, **{f"timing_s/{name}": seconds for name, seconds in parts.items()},
                      "perf/throughput": tokens / step_s, "perf/rollout_tokens_per_s": tokens / parts["gen"], "perf/max_memory_allocated_gb": 0.52 + 0.02 * (step > 10),
                      "engine/occupancy": min(1, 0.8 + self.noise(0.04))}
            if step % 20 == 0 or step == steps:
                values |= {"eval/arithmetic/accuracy": round(min(0.995, skill + 0.01), 3), "eval/arithmetic/avg@8": round(min(0.99, skill - 0.01), 3), "eval/arithmetic/pass@8": round(min(1, skill + 0.28), 3)}
            if step == steps:
                values["eval/prose/bits_per_char"] = 5.06
            self.record("grpo", step, values)
            if step in (1, 2, steps) or step % max(1, steps // 24) == 0:
                self.group(step, skill)
                self.group(step, skill)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG)
    run = Run(folder)
    run.sft(300)
    run.grpo(int(sys.argv[2]) if len(sys.argv) == 3 else 120)


if __name__ == "__main__":
    main()
