#!/usr/bin/env python3
"""GRPO on the reference task, Temper beside TRL: the same model directory, problems, settings, threads; in turn on this machine.

    bench/compare_grpo.py [--steps 60] [--seeds 42 43 44] [--trl-seeds 42]

Needs scripts/setup.sh --python, scripts/fetch_smollm2.sh and scripts/build.sh. Prints one JSON line a run and then the table
(Markdown). Training time leaves start-up and evaluation out on both sides; peak memory is the process's largest resident set."""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(command, cwd, environment):
    """Exit code, standard output, peak resident memory in GiB."""
    with open(pathlib.Path(cwd) / "log.txt", "w+") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        text = log.read()
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{text[-3000:]}")
    return text, usage.ru_maxrss / 1024**2


def temper(arguments, seed, environment):
    with tempfile.TemporaryDirectory() as folder:
        _, memory = run([arguments.temper, "run", ROOT / "configs/smollm2_arithmetic.toml", f"--run.seed={seed}", f"--run.dir={folder}/runs",
                         f"--model.path={arguments.model}", f"--train.max_steps={arguments.steps}", "--checkpoint.local_every_steps=0"],
                        folder, environment)
        records = [json.loads(line) for line in open(f"{folder}/runs/smollm2_arithmetic/metrics.jsonl")]
    steps = [record for record in records if "loss" in record]
    return {"near": records[-1]["eval/add1_near/accuracy"], "far": records[-1]["eval/add1_far/accuracy"],
            "train_s": sum(record["timing_s/step"] for record in steps), "step_s": [record["timing_s/step"] for record in steps],
            "reward": [record["reward"] for record in steps], "peak_gib": memory,
            "logp_difference": sum(r["sampling/sampling_logp_difference/mean"] for r in steps) / len(steps)}


def trl(arguments, seed, environment):
    with tempfile.TemporaryDirectory() as folder:
        text, memory = run([ROOT / ".deps/python/bin/python", ROOT / "bench/trl_add1.py", "--model", arguments.model, "--steps", str(arguments.steps),
                            "--seed", str(seed), "--threads", str(arguments.threads)], folder, environment)
    result = json.loads(next(line for line in text.splitlines() if line.startswith("RESULT "))[7:])
    return result | {"peak_gib": memory}


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="*", default=[42, 43, 44])
    parser.add_argument("--trl-seeds", type=int, nargs="*", default=[42])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    results = {"Temper": [], "TRL": []}
    for seed in dict.fromkeys([*arguments.seeds, *arguments.trl_seeds]):  # in turn
        for name, seeds, side in (("Temper", arguments.seeds, temper), ("TRL", arguments.trl_seeds, trl)):
            if seed in seeds:
                results[name].append(side(arguments, seed, environment))
                print(json.dumps({"bench": "compare_grpo", "side": name, "seed": seed, "threads": arguments.threads, "machine": platform.machine(),
                                  "command": " ".join(sys.argv), **results[name][-1]}), flush=True)

    def row(label, value, digits=2):
        cells = [f"{mean(value(r) for r in results[name]):.{digits}f}" if results[name] else "not run" for name in ("Temper", "TRL")]
        print(f"| {label} | {cells[0]} | {cells[1]} |")

    print(f"\n| mean over seeds | Temper ({len(results['Temper'])}) | TRL ({len(results['TRL'])}) |\n| --- | --- | --- |")
    row("training, s", lambda r: r["train_s"], 1)
    row("s a step, steps 1-10", lambda r: mean(r["step_s"][:10]))
    row(f"s a step, last 10 of {arguments.steps}", lambda r: mean(r["step_s"][-10:]))
    row("peak memory, GiB", lambda r: r["peak_gib"])
    for begin in range(0, arguments.steps, 5):
        if begin < 35 or begin + 5 == arguments.steps:
            row(f"reward, steps {begin + 1}-{begin + 5}", lambda r: mean(r["reward"][begin : begin + 5]), 3)
    row("near accuracy at the end", lambda r: r["near"], 3)
    row("far accuracy at the end", lambda r: r["far"], 3)
    if results["Temper"] and results["TRL"]:
        both = [mean(r[key] for r in results["Temper"]) / mean(r[key] for r in results["TRL"]) for key in ("train_s", "peak_gib")]
        print(f"\nTemper / TRL: training time {both[0]:.2f}, peak memory {both[1]:.2f}")


if __name__ == "__main__":
    main()
