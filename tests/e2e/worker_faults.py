"""Hundreds of seeded faults of rollout workers during one training run: killed (SIGKILL), stopped and continued (SIGSTOP, SIGCONT), told to
leave (SIGTERM). Training must not stop, each prompt must be trained on once, and the run must be that of an undisturbed one: with
max_staleness 0 bit by bit, above it with the same reward within two standard errors. Prints one JSON line a run, with the time from a kill to
the last of its prompts' being given to another worker.

    python3 tests/e2e/worker_faults.py build/release/temper [--faults 200] [--staleness 0 1] [--workers 4] [--seed 1]"""
import argparse
import datetime
import json
import pathlib
import random
import re
import signal
import statistics
import subprocess
import tempfile
import time

import harness

CONFIG = """
[run]
seed = 7
dtype = "f32"
[model]
init = {family = "llama", hidden_size = 64, num_layers = 2, num_heads = 2, intermediate_size = 128, max_position_embeddings = 64}
[data]
task = "arithmetic"
generated = {max_operand = 5}
[rollout]
num_generations = 4
max_completion_length = 24
max_num_seqs = 16
[reward]
functions = ["task", "length"]
length.target = 9
[train]
num_prompts_per_step = 8
max_steps = 100000
[optim]
learning_rate = 1e-4
[checkpoint]
local_every_steps = 50
[log]
tensorboard = false
completions = 1000
"""
AGAIN = re.compile(r"(\S+ \S+) info(?: \S+=\S+)* prompt (\d+): lost by worker (\S+), given to (\S+) after (\d+) ms")
LONG = 6.5  # s: longer than the hub waits for a heartbeat


def said_by(run):
    return run.with_suffix(".err").read_text()[-3000:]


def lines_of(path):
    return [line for line in path.read_text().split("\n") if line] if path.exists() else []


def disturb(process, run, arguments, chance):
    """What was done: [(kind, worker, time)]."""
    done, stopped = [], {}  # name: (pid, when to continue)
    last, moved = -1, time.monotonic()
    while len(done) < arguments.faults or stopped:
        if process.poll() is not None:
            raise SystemExit(f"the run ended after {len(done)} faults: {said_by(run)}")
        steps = len(lines_of(run / "metrics.jsonl"))
        if steps > last:
            last, moved = steps, time.monotonic()
        if time.monotonic() - moved > 60:
            raise SystemExit(f"no step for 60 s after {len(done)} faults, at step {last}")
        for name, (pid, until) in list(stopped.items()):
            if time.monotonic() >= until:
                harness.send(pid, signal.SIGCONT)
                del stopped[name]
        there = {name: pid for name, pid in harness.workers_of(process.pid).items() if name not in stopped}
        if len(done) < arguments.faults and there:
            name = chance.choice(sorted(there))
            kind = chance.choices(["kill", "stop", "leave"], [5, 3, 2])[0]
            if harness.send(there[name], {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "leave": signal.SIGTERM}[kind]):
                done.append((kind, name, time.time()))
                if kind == "stop":
                    stopped[name] = (there[name], time.monotonic() + (LONG if chance.random() < 0.15 else chance.uniform(0.1, 2)))
        time.sleep(chance.uniform(0.1, arguments.pause))
    return done


def releases(run, faults):
    """Milliseconds from each kill to the last of its worker's prompts' having another worker; kills of workers without a prompt apart."""
    seen = [(datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S.%f").timestamp(), found[3])
            for found in map(AGAIN.match, lines_of(run / "logs/run.log")) if found]
    times = []
    for kind, name, at in faults:
        later = min((other for _, of, other in faults if of == name and other > at), default=float("inf"))
        after = [when - at for when, lost_by in seen if lost_by == name and at - 0.002 <= when < min(later, at + LONG)]
        if kind == "kill" and after:
            times.append(1000 * max(0.0, max(after)))
    return times


def curve(run):
    return [record["reward"] for record in harness.metrics(run)[1:] if "reward" in record]


def compare(disturbed, undisturbed):
    """The means of the second half, and the standard error of their difference from ten long blocks: neighbouring steps are alike."""
    halves = []
    for rewards in (disturbed, undisturbed):
        rewards = rewards[len(rewards) // 2 :]
        width = max(1, len(rewards) // 10)
        halves.append([statistics.mean(rewards[i : i + width]) for i in range(0, len(rewards) - width + 1, width)])
    error = sum(statistics.variance(blocks) / len(blocks) for blocks in halves) ** 0.5
    return [statistics.mean(blocks) for blocks in halves], error


def check(staleness, arguments, folder):
    (folder / "config.toml").write_text(CONFIG)
    common = [harness.TEMPER, "run", "config.toml", f"--run.dir={folder}", f"--rollout.workers={arguments.workers}", f"--async.max_staleness={staleness}"]
    if staleness == 0:
        common.append("--run.deterministic=true")
    name = f"disturbed_{staleness}"
    run = folder / name
    began = time.monotonic()
    with open(run.with_suffix(".err"), "w") as said:
        process = subprocess.Popen([*common, f"--run.name={name}"], cwd=folder, stderr=said)
    try:
        harness.wait_until(lambda: len(lines_of(run / "metrics.jsonl")) > 2, "the first step")
        faults = disturb(process, run, arguments, random.Random(arguments.seed))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    seconds = time.monotonic() - began
    assert process.returncode == 75, f"exit code {process.returncode}: {said_by(run)}"
    records = harness.metrics(run)[1:]
    steps = len(records)
    assert [record["step"] for record in records] == list(range(1, steps + 1)), "a step is missing"
    assert max(record["training/groups_failed"] for record in records) == 0, "a prompt failed"
    serials = harness.serials(run)
    assert len(serials) == len(set(serials)) == 8 * steps, "a prompt was trained on twice, or not at all"
    assert set(range(8 * (steps - staleness - 2))) <= set(serials), "a prompt was lost"
    still = f"undisturbed_{staleness}"
    harness.temper(*common[1:], f"--run.name={still}", f"--train.max_steps={steps}", cwd=folder, check=0)
    means, error = compare(curve(run), curve(folder / still))
    same = None
    if staleness == 0:
        alone, mine = (harness.without_hub(harness.metrics(each)) for each in (folder / still, run))
        same = alone[1:steps] == mine[1:steps]  # the last step of a run that ends is followed by an evaluation
        assert same, "metrics differ from the undisturbed run's"
    else:
        assert abs(means[0] - means[1]) <= 2 * error, f"reward {means[0]:.4f}, undisturbed {means[1]:.4f} (two standard errors: {2 * error:.4f})"
    times = releases(run, faults)
    print(json.dumps({
        "max_staleness": staleness, "workers": arguments.workers, "faults": len(faults), **{f"{kind}s": sum(kind == k for k, _, _ in faults) for kind in ("kill", "stop", "leave")},
        "seconds": round(seconds, 1), "steps": steps, "prompts": len(serials), "same_bits": same, "reward": [round(mean, 4) for mean in means], "standard_error": round(error, 4),
        "prompts_reissued": int(sum(record["async/rollout/prompts_reissued"] for record in records)),
        "prompts_continued": int(sum(record["async/rollout/prompts_continued"] for record in records)),
        "kills_with_prompts": len(times), "kill_to_release_ms_p50": round(statistics.median(times), 1) if times else None,
        "kill_to_release_ms_max": round(max(times), 1) if times else None}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("temper", type=pathlib.Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--staleness", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between two faults, at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for staleness in arguments.staleness:
            check(staleness, arguments, pathlib.Path(folder))


if __name__ == "__main__":
    main()
