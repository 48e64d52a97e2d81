#!/usr/bin/env python3
"""From kill -9 of a trainer rank to the next optimiser step: what passes, part by part.

    bench/restart_time.py [--ranks 2] [--kills 5] [--folder runs/restart_time]

`temper run` trains the quickstart's model by GRPO on several ranks, with a checkpoint every five steps; a rank, each in turn, is killed by SIGKILL.
The parts: until the last rank of the killed world is gone, until the first process of the next one starts, until it has the run directory (LibTorch,
MPI), until the checkpoint is read, until the first step is done, which is a step's own time. Prints a table (Markdown) and one JSON line a kill. Needs
scripts/build.sh."""
import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import time
from datetime import datetime

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
[run]
name = "restart"
dir = "{folder}"
[model]
init = {{family = "llama", hidden_size = 128, num_layers = 4, num_heads = 4, num_kv_heads = 2, intermediate_size = 384, max_position_embeddings = 64}}
[data]
task = "arithmetic"
max_prompt_length = 16
generated = {{max_operand = 49}}
[eval]
num_prompts = 0
[rollout]
num_generations = 16
max_completion_length = 6
[algo]
preset = "grpo"
[train]
ranks = {ranks}
num_prompts_per_step = 8
max_steps = 100000
max_restarts = 1000
[optim]
learning_rate = 1e-4
[checkpoint]
local_every_steps = 5
[log]
tensorboard = false
"""
PARTS = ("others end", "next process", "start-up", "load", "first step")


def ranks_of(launcher):
    """{rank: (pid, when it started)} of the ranks under mpirun under this process."""
    with open("/proc/stat") as file:
        booted = float(re.search(r"btime (\d+)", file.read()).group(1))
    found, parents = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if len(command) > 1 and command[1] == b"train" and fields[0] != "Z":
                rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", (entry / "environ").read_bytes())
                found[int(rank.group(1))] = (int(entry.name), booted + int(fields[19]) / os.sysconf("SC_CLK_TCK"))
        except (OSError, AttributeError):
            continue
    return {rank: (pid, started) for rank, (pid, started) in found.items() if parents.get(parents.get(pid)) == launcher}


def wait(happens):
    deadline = time.monotonic() + 120
    while not (found := happens()):
        if time.monotonic() > deadline:
            raise SystemExit("bench/restart_time.py: nothing happened for two minutes")
        time.sleep(0.002)
    return found


def first_line_after(path, when, words):
    """The time of the first line of this log after that time that holds the words; nothing: there is none yet."""
    for line in path.read_text().splitlines():
        stamp = re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", line)
        if stamp and words in line and (at := datetime.strptime(stamp.group(), "%Y-%m-%d %H:%M:%S.%f").timestamp()) > when:
            return at
    return None


def steps(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines[-50:]) if "loss" in record]


def kill_one(process, run, rank):
    before = wait(lambda: len(found := ranks_of(process.pid)) > 1 and found)
    done = len(list(run.glob("checkpoints/*/step_*/COMMITTED"))) and steps(run)[-1]["step"] or 0
    wait(lambda: (records := steps(run)) and records[-1]["step"] >= done + 7 and list(run.glob("checkpoints/*/step_*/COMMITTED")))
    killed = time.time()
    os.kill(before[rank][0], signal.SIGKILL)
    old = {pid for pid, _ in before.values()}
    wait(lambda: not old & {pid for pid, _ in ranks_of(process.pid).values()})
    gone = time.time()
    after = wait(lambda: ranks_of(process.pid))
    started = max(gone, min(when for _, when in after.values()))
    log = run / "logs" / "run.log"
    up = wait(lambda: first_line_after(log, killed, "device "))
    loaded = wait(lambda: first_line_after(log, killed, "resumed at step"))
    step = wait(lambda: next((record["time"] for record in steps(run) if record["time"] > loaded), None))
    times = (killed, gone, started, up, loaded, step)
    return dict(zip(PARTS, (b - a for a, b in zip(times, times[1:])))) | {"whole": step - killed, "killed_rank": rank}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs/restart_time")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    arguments = parser.parse_args()
    folder = (arguments.folder / time.strftime("%Y%m%d_%H%M%S")).resolve()
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder, ranks=arguments.ranks))
    process = subprocess.Popen([arguments.temper, "run", "config.toml"], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        results = []
        for i in range(arguments.kills):
            results.append(kill_one(process, folder / "restart", (i + 1) % arguments.ranks))
            print(json.dumps({key: round(value, 3) for key, value in results[-1].items()}), flush=True)
    finally:
        process.terminate()
        process.wait()
    print("\n| from kill -9 to | median, s | largest, s |\n| --- | --- | --- |")
    names = ("the others have ended", "the next world starts", "it has the run directory", "its checkpoint is loaded", "a step is done")
    for name, part in zip(names, PARTS):
        print(f"| {name} ({part}) | {statistics.median(r[part] for r in results):.2f} | {max(r[part] for r in results):.2f} |")
    print(f"| the whole | {statistics.median(r['whole'] for r in results):.2f} | {max(r['whole'] for r in results):.2f} |")


if __name__ == "__main__":
    main()
