#!/usr/bin/env python3
"""What a cluster's faults cost a run: seconds lost per kind of fault, and the share of useful steps with a fault of mixed kinds every ten steps.

    bench/slurm_faults.py table [--step 2] [--steps 24]       each kind in a run of its own, on-policy and deterministic
    bench/slurm_faults.py mixed [--step 20] [--steps 60]      one asynchronous run, a fault every ten steps

Jobs of scripts/slurm/train.sbatch on the four nodes of scripts/slurm/mini_cluster.sh (up before; needs root): two trainer nodes, one with two rollout
workers, one spare. The model is the quickstart's after some SFT, the workers are paced (bench/paced_reward.py) so that a step takes --step seconds.

Lost is what passes from the end of the last step before the fault to that of the first new one after it was got over (the trainer was started again, or
a killed worker's group came from another), less the undisturbed time of these steps. That time is the mean step's in `table`; in `mixed` the pace of the
steps' groups, divided by the workers. What Slurm takes of it is reported apart: the job in its queue, and what it needs before that: from a node's
death (or the last step that was taken all the same) until it calls the node down, and from the end of the job's last process until it is in the queue.

Each run must complete, train on each prompt once, and in `table` have the rewards of the undisturbed run: step by step where the number of ranks stays,
else on the mean. Prints tables (Markdown) and one JSON line a fault; exit code 1 where a run falls short. Needs scripts/build.sh."""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

from paced_reward import pace

ROOT = pathlib.Path(__file__).resolve().parents[1]
SLURM = ROOT / "scripts" / "slurm"
PROMPTS = 8
WORKERS = 2
CONFIG = """
[run]
seed = 42
deterministic = {deterministic}
[model]
path = "{model}"
[data]
task = "arithmetic"
max_prompt_length = 16
generated = {{max_operand = 49}}
[eval]
num_prompts = 0
[rollout]
source = "hub"
num_generations = 16
max_completion_length = 6
max_num_seqs = 16
[async]
max_staleness = {staleness}
[reward]
functions = ["task", "command"]
weights = [1.0, 0.0]
command = "python3 {pace} {mean} pace"
timeout_s = 120
[algo]
preset = "grpo"
kl_coef = 0.001
[train]
num_prompts_per_step = {prompts}
max_steps = {steps}
[optim]
betas = [0.9, 0.99]
learning_rate = 2e-4
[checkpoint]
local_every_steps = 1
[log]
tensorboard = false
completions = 100000
"""


def command(*words, check=True, **more):
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, **more)
    if check and done.returncode != 0:
        raise SystemExit(f"bench/slurm_faults.py: {' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def job_fields(job):
    return dict(field.split("=", 1) for field in command("scontrol", "--oneliner", "show", "job", job).split() if "=" in field)


def hosts(expression):
    return command("scontrol", "show", "hostnames", expression).split()


class Spans:
    """When something was so: [(begin, end)]."""

    def __init__(self):
        self.ended, self.since = [], None

    def note(self, is_so):
        if is_so and self.since is None:
            self.since = time.time()
        elif not is_so and self.since is not None:
            self.ended.append((self.since, time.time()))
            self.since = None

    def within(self, begin, end, but_before=()):
        """Seconds; of each span only what comes after the last of the times but_before that lie in it."""
        total = 0.0
        for a, b in self.ended:
            a = max([a, begin, *(t for t in but_before if a < t < b)])
            total += max(0.0, min(b, end) - a)
        return total


class SlurmWatch:
    """What Slurm does with a job, looked at five times a second: when it was in the queue, when it was neither there nor had a process left, and when
    a node of it was dead without Slurm's knowledge. processes(): of the run, those that it has."""

    def __init__(self, job, processes):
        self.job, self.processes, self.over = job, processes, threading.Event()
        self.queued, self.ending, self.unseen = Spans(), Spans(), Spans()
        self.dead_node = None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def node_died(self, node):
        self.unseen.note(True)
        self.dead_node = node

    def watch(self):
        while not self.over.wait(0.2):
            state = command("squeue", "--noheader", "--jobs", self.job, "--states=all", "--format=%T", check=False)
            in_queue = state in ("PENDING", "REQUEUED", "CONFIGURING", "REQUEUE_HOLD", "SPECIAL_EXIT")
            self.queued.note(in_queue)
            self.ending.note(not in_queue and state not in ("RUNNING", "COMPLETED") and not self.processes())
            # sinfo calls a dead node "mixed*" while it has jobs on it.
            if self.dead_node and "State=DOWN" in command("scontrol", "--oneliner", "show", "node", self.dead_node, check=False):
                self.unseen.note(False)
                self.dead_node = None

    def in_queue(self, begin, end):
        return self.queued.within(begin, end)

    def elsewhere(self, begin, end, steps):
        """Seconds until it saw a dead node, since the last of the steps (their times) that could still be taken; and in which it ended a job that had
        nothing to end."""
        return self.unseen.within(begin, end, but_before=steps) + self.ending.within(begin, end)


class Run:
    """A run as a job; worker_nodes = 0: its workers are a job of their own, on a node that the ranks share."""

    def __init__(self, arguments, folder, name, nodes=3, worker_nodes=1):
        self.arguments, self.folder, self.name = arguments, folder, name
        self.path = folder / "runs" / name
        self.steps_wanted = arguments.steps
        self.begun = time.time()
        self.job = self.submit("train.sbatch", worker_nodes, f"--nodes={nodes}", "--ntasks-per-node=1")
        if worker_nodes == 0:
            self.submit("rollout.sbatch", 0, "--nodes=1", f"--ntasks-per-node={WORKERS}")
        self.slurm = SlurmWatch(self.job, lambda: self.pids("train") + self.pids("rollout"))
        self.faults = []

    def submit(self, script, worker_nodes, *options):
        variables = f"ALL,TEMPER={self.arguments.temper},TEMPER_WORKER_NODES={worker_nodes},TEMPER_WORKERS_PER_NODE={WORKERS},TEMPER_MAX_RESTARTS=1000,OMP_NUM_THREADS=1,OMP_WAIT_POLICY=passive"
        return command("sbatch", "--parsable", f"--chdir={self.folder}", *options, f"--export={variables}", SLURM / script, "config.toml",
                       f"--run.name={self.name}")

    def records(self):
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                pass  # being written
        return [record for record in found if "loss" in record]

    def done(self):
        records = self.records()
        return records[-1]["step"] if records else 0

    def wait_for(self, happens, what, seconds=None):
        deadline = time.monotonic() + (seconds or 60 + 20 * self.arguments.step)
        while not (found := happens()):
            state = job_fields(self.job)["JobState"]
            if state in ("FAILED", "CANCELLED", "TIMEOUT") or time.monotonic() > deadline:
                raise SystemExit(f"bench/slurm_faults.py: {self.name}: {what} did not happen; job {self.job} is {state}\n{self.log()[-3000:]}")
            time.sleep(0.05)
        return found

    def starts(self):
        try:
            return json.loads((self.path / "status.json").read_text())["starts"]
        except OSError:
            return 0

    def log(self):
        path = self.folder / f"temper-{self.job}.log"
        return path.read_text() if path.exists() else "no log"

    def node_list(self):
        return hosts(job_fields(self.job)["NodeList"])

    def pids(self, word):
        """Of this run's processes `temper WORD …`."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(words) > 1 and words[1] == word.encode() and f"--run.name={self.name}".encode() in words:
                found.append(int(entry.name))
        return sorted(found)

    def hit(self, kind):
        """Does it and waits until it is got over."""
        last, starts, at = self.records()[-1], self.starts(), time.time()
        FAULTS[kind](self)
        patience = 240 + 4 * self.arguments.step
        done = last["step"] + 1
        if kind != "worker killed":
            self.wait_for(lambda: self.starts() > starts, f"another start after {kind}", patience)
            done = self.done()  # some may have been trained before the fault was felt
        first = self.wait_for(lambda: next((r for r in self.records() if r["step"] > done), None), f"a step after {kind}", patience)
        fault = {"kind": kind, "step": last["step"], "at": last["time"], "step_after": first["step"], "until": first["time"]}
        self.faults.append(fault)
        for node in ("n1", "n2", "n3", "n4"):  # what was taken away comes back, in time for the next
            command(SLURM / "mini_cluster.sh", "start", node)
            command("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        return fault

    def finish(self):
        self.wait_for(lambda: job_fields(self.job)["JobState"] == "COMPLETED", "its end", 120 + 3 * self.arguments.step * self.steps_wanted)
        self.ended = time.time()
        time.sleep(0.5)
        self.slurm.over.set()
        self.slurm.thread.join()

    def usual_step(self):
        """Mean seconds of the steps that no fault touched."""
        records = self.records()
        touched = {step for fault in self.faults for step in range(fault["step"], fault["step_after"] + 2)}
        return statistics.mean(b["time"] - a["time"] for a, b in zip(records[1:], records[2:]) if b["step"] not in touched)

    def losses(self, seconds_of):
        """seconds_of(steps): what these take undisturbed."""
        times = [record["time"] for record in self.records()]
        for fault in self.faults:
            span = fault["at"], fault["until"]
            queued, elsewhere = self.slurm.in_queue(*span), self.slurm.elsewhere(*span, times)
            lost = span[1] - span[0] - queued - elsewhere - seconds_of(range(fault["step"] + 1, fault["step_after"] + 1))
            yield fault | {"queue_s": round(queued, 2), "slurm_s": round(elsewhere, 2), "lost_s": round(lost, 2)}

    def paces(self):
        """{step: seconds that the workers took for its groups}, which do not depend on what befell the run."""
        mean, found = pace_of_group(self.arguments), {}
        for line in (self.path / "completions.jsonl").read_text().split("\n"):
            if line:
                group = json.loads(line)
                found[group["step"]] = found.get(group["step"], 0) + pace(mean, "pace", group["prompt"]) / WORKERS
        return found

    def rewards(self):
        return [record["rewards/task/mean"] for record in self.records()]

    def problems(self, undisturbed=None, exactly=True):
        """What is wrong with the run that has ended; empty: nothing."""
        found = []
        if [record["step"] for record in self.records()] != list(range(1, self.steps_wanted + 1)):
            found.append("metrics.jsonl does not have each step once")
        lines = (self.path / "completions.jsonl").read_text().split("\n")
        serials = [json.loads(line)["serial"] for line in lines if line]
        if len(serials) != len(set(serials)) or len(serials) != PROMPTS * self.steps_wanted:
            found.append(f"{len(serials)} prompts were trained on, {len(set(serials))} different ones, for {self.steps_wanted} steps of {PROMPTS}")
        if undisturbed is not None:
            a, b = undisturbed.rewards(), self.rewards()
            if exactly and a != b:
                found.append(f"its rewards leave the undisturbed run's at step {next(i for i, (x, y) in enumerate(zip(a, b), 1) if x != y)}")
            error = 2 * (statistics.pvariance(a) / len(a) + statistics.pvariance(b) / len(b)) ** 0.5
            if abs(statistics.mean(a) - statistics.mean(b)) > error:
                found.append(f"its mean reward {statistics.mean(b):.3f} is not the undisturbed run's {statistics.mean(a):.3f} within {error:.3f}")
        return found


def kill(pid):
    os.kill(pid, 9)


def requeue_with(run, nodes):
    command("scancel", "--signal=USR1", "--batch", run.job)
    run.wait_for(lambda: job_fields(run.job)["JobState"] == "PENDING", "its requeue", 120)
    command("scontrol", "update", f"JobId={run.job}", f"NumNodes={nodes}", f"NumTasks={nodes}")


def kill_node(run, index):
    node = run.node_list()[index]
    run.slurm.node_died(node)
    command(SLURM / "mini_cluster.sh", "kill", node)


def drain(run):
    command("scontrol", "update", f"NodeName={run.node_list()[0]}", "State=DRAIN", "Reason=maintenance")
    command("scancel", "--signal=USR1", "--batch", run.job)  # as scripts do that empty a node before its time


FAULTS = {
    "worker killed": lambda run: kill(run.pids("rollout")[0]),
    "rank killed": lambda run: kill(run.pids("train")[-1]),
    "worker node lost": lambda run: kill_node(run, -1),
    "trainer node lost": lambda run: kill_node(run, 0),
    "node drained": drain,
    "time nearly over (USR1)": lambda run: command("scancel", "--signal=USR1", "--batch", run.job),
    "preempted (requeued by Slurm)": lambda run: command("scontrol", "requeue", run.job),
}


def start_model(arguments, folder):
    """The quickstart's model after some SFT (and one step of GRPO), made once."""
    model = folder.parent / "start" / "model"
    if not (model / "config.json").exists():
        command(arguments.temper, "run", ROOT / "configs/quickstart.toml", f"--run.dir={folder.parent}", "--run.name=start", f"--stage.sft.train.max_steps={arguments.sft_steps}",
                "--stage.grpo.train.max_steps=1", "--eval.num_prompts=0")
    return model


def pace_of_group(arguments):
    """Mean seconds: each worker takes a group at a time."""
    return arguments.step * WORKERS / PROMPTS


def configure(arguments, folder, model, staleness):
    mean = pace_of_group(arguments)
    (folder / "config.toml").write_text(CONFIG.format(model=model, pace=ROOT / "bench/paced_reward.py", mean=f"{mean:.3f}", prompts=PROMPTS, steps=arguments.steps,
                                                      staleness=staleness, deterministic="true" if staleness == 0 else "false"))


def table(arguments, folder):
    failed = False
    undisturbed = Run(arguments, folder, "undisturbed")
    undisturbed.finish()
    failed |= report("undisturbed", undisturbed.problems())
    usual = undisturbed.usual_step()
    print(f"undisturbed: {usual:.2f} s a step, {undisturbed.ended - undisturbed.begun:.0f} s from submission to the end", flush=True)
    rows = []
    middle = arguments.steps // 2
    for kind in arguments.kinds or [*FAULTS, "4, 2 and 3 trainer nodes"]:
        resized = kind not in FAULTS
        run = Run(arguments, folder, re.sub(r"\W+", "_", kind), *((4, 0) if resized else ()))
        run.wait_for(lambda: run.done() >= middle // 2, "the first steps", 120 + 2 * usual * middle)
        if resized:
            for step, nodes in ((middle // 2, 2), (middle, 3)):
                run.wait_for(lambda: run.done() >= step, f"step {step}")
                FAULTS["resize"] = lambda r, n=nodes: requeue_with(r, n)
                run.hit("resize")
        else:
            run.hit(kind)
        run.finish()
        problems = run.problems(undisturbed, exactly=not resized)
        failed |= report(kind, problems)
        losses = [*run.losses(lambda steps: usual * len(steps))]
        for loss in losses:
            print(json.dumps(loss), flush=True)
        rows.append((kind, losses, not problems, run.ended - run.begun))
    print("\n| fault | seconds lost | until Slurm knew, and ended the job | in its queue | completed, each prompt once, rewards of the undisturbed run |\n| --- | --- | --- | --- | --- |")
    for kind, losses, good, _ in rows:
        columns = [" + ".join(format(loss[key], ".1f") for loss in losses) for key in ("lost_s", "slurm_s", "queue_s")]
        print(f"| {kind} | {' | '.join(columns)} | {'yes' if good else 'no'} |")
    return failed


def mixed(arguments, folder):
    run = Run(arguments, folder, "mixed")
    kinds = arguments.kinds or [kind for kind in FAULTS if kind != "node drained"]
    for i, step in enumerate(range(5, arguments.steps - 3, 10)):
        run.wait_for(lambda: run.done() >= step, f"step {step}", 120 + 20 * arguments.step)
        time.sleep(0.37 * arguments.step)  # somewhere within a step
        fault = run.hit(kinds[i % len(kinds)])
        print(json.dumps(fault), flush=True)
    run.finish()
    failed = report("mixed", run.problems())
    # Steps of a log-normal pace differ by more than what is to be measured, but how long each should take is known.
    paces = run.paces()
    seconds_of = lambda steps: sum(paces[step] for step in steps)
    records = run.records()
    first = records[0]["time"]
    last = records[-1]["time"]
    wall, queued, elsewhere = last - first, run.slurm.in_queue(first, last), run.slurm.elsewhere(first, last, [record["time"] for record in records])
    useful = seconds_of(range(2, len(records) + 1))
    print("\n| fault | at step | seconds lost | until Slurm knew, and ended the job | in its queue |\n| --- | --- | --- | --- | --- |")
    for loss in run.losses(seconds_of):
        print(f"| {loss['kind']} | {loss['step']} | {loss['lost_s']:.1f} | {loss['slurm_s']:.1f} | {loss['queue_s']:.1f} |")
    print(f"\n{len(records)} steps of {useful / (len(records) - 1):.1f} s; wall time from the end of the first to the end of the last {wall:.0f} s, of these {queued:.0f} s in Slurm's queue "
          f"and {elsewhere:.0f} s until it knew of a dead node or had ended a job without processes; useful: {useful / (wall - queued):.1%} of what was not in the queue, "
          f"{useful / (wall - queued - elsewhere):.1%} without these too (asked for: 95%)")
    return failed


def report(name, problems):
    for problem in problems:
        print(f"{name}: {problem}", flush=True)
    return bool(problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("table", "mixed"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs/slurm_faults", help="on the file system that the nodes share: not in /tmp")
    parser.add_argument("--step", type=float, help="seconds of a step (2, mixed 20)")
    parser.add_argument("--steps", type=int, help="of a run (24, mixed 60)")
    parser.add_argument("--sft-steps", type=int, default=800, help="of the model that the runs start from; it is made once a --folder")
    parser.add_argument("--kinds", nargs="*", help="of faults; default: all")
    arguments = parser.parse_args()
    is_table = arguments.mode == "table"
    arguments.step = arguments.step or (2.0 if is_table else 20.0)
    arguments.steps = arguments.steps or (24 if is_table else 60)
    folder = (arguments.folder / time.strftime("%Y%m%d_%H%M%S")).resolve()
    folder.mkdir(parents=True)
    configure(arguments, folder, start_model(arguments, folder), 0 if is_table else 1)
    try:
        return (table if is_table else mixed)(arguments, folder)
    finally:
        command("scancel", "--user", str(os.geteuid()), check=False)


if __name__ == "__main__":
    sys.exit(main())
