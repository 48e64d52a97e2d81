"""Kills runs at random moments until they are done, and compares them bit for bit with undisturbed ones: GRPO and PPO, on one rank and
on two, a checkpoint every step. scripts/nightly.sh runs it.

    random_kills.py TEMPER [--kills=100] [--seed=0]       exit status 1 and a sentence where a run differs

Of two ranks either one is killed alone, or `temper run`, whose death ends them.
"""
import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import harness

BASE = harness.TINY.replace("num_generations = 8\nmax_completion_length = 8", "num_generations = 4\nmax_completion_length = 4") + """
[checkpoint]
local_every_steps = 1
"""
GRPO = BASE + """
[[stage]]
name = "grpo"
algo = {preset = "grpo", kl_coef = 0.02, num_minibatches = 2}
train = {num_prompts_per_step = 8, max_steps = 24}
optim = {learning_rate = 5e-4, lr_scheduler_type = "linear"}
"""
PPO = BASE + """
[[stage]]
name = "ppo"
algo = {preset = "ppo", kl_coef = 0.02, num_minibatches = 2, num_epochs = 2, kl_ctrl = {type = "adaptive", target = 0.01, horizon = 100}}
critic = {learning_rate = 1e-3}
train = {num_prompts_per_step = 8, max_steps = 16}
optim = {learning_rate = 5e-4}
"""


class Course:
    """One configuration: its undisturbed run, and what became of those that were killed."""

    def __init__(self, name, text, ranks, folder, chance):
        self.name, self.ranks, self.chance = name, ranks, chance
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "config.toml").write_text(text)
        self.unfinished = set()
        self.kills = self.in_save = self.before_step = self.finished = 0
        begin = time.monotonic()
        self.resume("whole")
        self.seconds = time.monotonic() - begin

    def arguments(self, run):
        return ["run", "config.toml", f"--run.name={run}", f"--train.ranks={self.ranks}", "--train.max_restarts=0"]

    def resume(self, run):
        harness.temper(*self.arguments(run), cwd=self.folder, check=0)

    def path(self, run):
        return self.folder / "runs" / run

    def kill_once(self, run):
        """Whether the run was killed before its end."""
        begin = time.monotonic()
        process = subprocess.Popen([harness.TEMPER, *self.arguments(run)], cwd=self.folder, stderr=subprocess.PIPE, text=True)
        try:
            _, err = process.communicate(timeout=self.chance.uniform(0, 1.1 * self.seconds))
            if process.returncode != 0:
                sys.exit(f"{self.name}: exit {process.returncode} without a kill:\n{err[-3000:]}")
            self.seconds = min(self.seconds, time.monotonic() - begin)  # the next kill is to come in time
            return False
        except subprocess.TimeoutExpired:
            pass
        ranks = harness.ranks_of(self.folder, run) if self.ranks > 1 else {}
        harness.send(self.chance.choice([process.pid, *ranks.values()]), signal.SIGKILL)
        process.communicate(timeout=300)
        harness.wait_until(lambda: not harness.ranks_of(self.folder, run), "the end of the ranks", seconds=300)
        if process.returncode == 0:  # it had ended just then
            return False
        unfinished = set(self.path(run).glob("checkpoints/*/step_*.tmp-*"))
        saving, self.unfinished = bool(unfinished - self.unfinished), unfinished  # those of the kill before go at the next start
        self.kills += 1
        self.in_save += saving
        metrics = self.path(run) / "metrics.jsonl"
        self.before_step += not metrics.exists() or '"loss"' not in metrics.read_text()
        return True

    def differs(self, run):
        whole, killed = self.path("whole"), self.path(run)
        if harness.without_times(harness.metrics(whole)) != harness.without_times(harness.metrics(killed)):
            return "metrics.jsonl"
        if (whole / "completions.jsonl").read_bytes() != (killed / "completions.jsonl").read_bytes():
            return "completions.jsonl"
        if harness.tensors(whole / "model" / "model.safetensors") != harness.tensors(killed / "model" / "model.safetensors"):
            return "model.safetensors"
        return ""

    def run_once(self, most_kills):
        """One run, killed until it is done or has been killed as often as wanted, then left to its end and compared."""
        run = f"killed_{self.finished}"
        while self.kills < most_kills and self.kill_once(run):
            pass
        self.resume(run)  # at once, where it is finished
        if difference := self.differs(run):
            sys.exit(f"{self.name}: {run} ends with another {difference} than the undisturbed run, after {self.kills} kills in all")
        shutil.rmtree(self.path(run))
        self.finished += 1
        print(json.dumps(self.report()), flush=True)

    def report(self):
        return {"course": self.name, "kills": self.kills, "in_a_save": self.in_save, "before_the_first_step": self.before_step,
                "runs_compared": self.finished, "undisturbed_s": round(self.seconds, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("temper")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = harness.temporary_folder(stack.callback)
        courses = [Course(f"{name}_{ranks}", text, ranks, folder, chance) for ranks in (1, 2) for name, text in (("grpo", GRPO), ("ppo", PPO))]
        wanted = [arguments.kills * (i + 1) // len(courses) - arguments.kills * i // len(courses) for i in range(len(courses))]
        while any(course.kills < kills for course, kills in zip(courses, wanted)):
            for course, kills in zip(courses, wanted):
                if course.kills < kills:
                    course.run_once(kills)
        reports = [course.report() for course in courses]
    total = {key: sum(report[key] for report in reports) for key in ("kills", "in_a_save", "before_the_first_step", "runs_compared")}
    print(json.dumps({**total, "seed": arguments.seed, "seconds": round(time.monotonic() - begin)}))


if __name__ == "__main__":
    main()
