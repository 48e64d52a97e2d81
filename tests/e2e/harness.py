"""Runs the program in a temporary folder and reads what it left. Used by the *_test.py files beside it."""
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

TEMPER = pathlib.Path(sys.argv[1]).resolve()

# Two thousand steps a minute: small enough for tests, and it can learn to copy.
TINY = """
[run]
name = "tiny"
seed = 7
dtype = "f32"
deterministic = true
[model]
init = {family = "llama", hidden_size = 64, num_layers = 2, num_heads = 2, intermediate_size = 128, max_position_embeddings = 64}
[data]
task = "copy"
max_prompt_length = 24
[eval]
num_prompts = 64
[rollout]
num_generations = 8
max_completion_length = 8
[log]
tensorboard = false
"""


def sft_then_grpo(grpo_steps):
    """A run of two stages with a checkpoint every two steps, for whatever interrupts it."""
    return TINY.replace("num_generations = 8\nmax_completion_length = 8", "num_generations = 4\nmax_completion_length = 4") + f"""
[checkpoint]
local_every_steps = 2
[[stage]]
name = "sft"
algo.preset = "sft"
train = {{num_prompts_per_step = 16, max_steps = 20}}
optim = {{learning_rate = 3e-3}}
[[stage]]
name = "grpo"
algo = {{preset = "grpo", kl_coef = 0.02}}
train = {{num_prompts_per_step = 8, max_steps = {grpo_steps}}}
optim = {{learning_rate = 5e-4}}
"""


class Result:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr


def temper(*arguments, cwd, stdin=None, check=None):
    process = subprocess.run([str(TEMPER), *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=500)
    result = Result(process)
    if check is not None and result.code != check:
        raise AssertionError(f"temper {' '.join(map(str, arguments))}: exit code {result.code}, expected {check}\n{result.err[-3000:]}")
    return result


def metrics(run):
    return [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]


def has_saved(run, stage):
    """Whether a checkpoint of the stage is committed: they are written while training goes on."""
    return any((pathlib.Path(run) / "checkpoints" / stage).glob("step_*/COMMITTED"))


def wait_until(happens, what, seconds=120):
    """What happens() returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := happens()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not after {seconds} s")
        time.sleep(0.01)
    return found


def wait_for_checkpoint(process, run, stage):
    """Until the run that `process` launched has committed one of this stage; where it ends without or is stuck, its words and logs are the error."""
    def saved():
        if has_saved(run, stage):
            return True
        if process.poll() is not None:
            raise AssertionError(f"{run} ended with {process.returncode} and no checkpoint of {stage}\n{process.stderr.read()[-3000:]}")
        return False
    try:
        wait_until(saved, f"a checkpoint of {stage}")
    except AssertionError as error:
        texts = [f"{log}:\n{log.read_text()[-1500:]}" for log in sorted((pathlib.Path(run) / "logs").glob("*.log"))]
        there = [str(path) for path in sorted((pathlib.Path(run) / "checkpoints").rglob("*"))][:40]
        raise AssertionError("\n".join([str(error), *texts, *there])) from None


def ranks_of(folder, name):
    """{rank: pid} of the trainer processes of the run of this name that was started in this folder."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            variables = dict(item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if b"=" in item)
            here = (entry / "cwd").resolve() == folder.resolve()
        except (OSError, ValueError):
            continue
        if here and len(command) > 1 and command[1] == b"train" and f"--run.name={name}".encode() in command:
            found[int(variables[b"OMPI_COMM_WORLD_RANK"])] = int(entry.name)
    return found


def send(pid, signum):
    """Whether there was such a process to take the signal."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def signal_rank(process, folder, name, rank, signum=signal.SIGKILL):
    """Sends a signal to this rank of the run that `process` launched and returns the rank's process id. A world that ends between the look and the
    signal has a successor, which is meant then; a run that is over is an error: the test was too slow for its steps."""
    def hit():
        if process.poll() is not None:
            raise AssertionError(f"{name} ended with {process.returncode} before rank {rank} had its signal\n{process.stderr.read()[-3000:]}")
        pid = ranks_of(folder, name).get(rank)
        return pid if pid and send(pid, signum) else None
    return wait_until(hit, f"rank {rank} of {name}")


def works_in(entry, folder):
    """Whether this process, an entry of /proc, has its working directory in the folder or below."""
    inside = os.fspath(pathlib.Path(folder).resolve())
    try:
        place = os.readlink(entry / "cwd")
    except OSError:  # gone, or a zombie
        return False
    return place == inside or place.startswith(inside + "/")


def working_in(folder):
    """The processes that have their working directory in the folder or below."""
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit() and works_in(entry, folder)]


def end_all_in(folder):
    """Kills whatever works in this folder or below, and what that starts meanwhile: ranks and workers outlive a launcher that was killed for a moment."""
    def none_left():
        left = working_in(folder)
        for pid in left:
            send(pid, signal.SIGKILL)
        return not left
    wait_until(none_left, f"the end of what works in {folder}")


def temporary_folder(add_cleanup):
    """A folder that is removed at the end, after everything that works in it: a run that still writes would put files back."""
    folder = tempfile.TemporaryDirectory()
    add_cleanup(folder.cleanup)
    add_cleanup(end_all_in, folder.name)
    return pathlib.Path(folder.name)


def workers_of(parent):
    """{name: pid} of the rollout workers that this process started."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            if int(fields[1]) == parent and "rollout" in words:
                found[next(word for word in words if word.startswith("--name="))[7:]] = int(entry.name)
        except (OSError, ValueError, IndexError, StopIteration):
            continue
    return found


def without_times(records):
    """What must repeat bit for bit: all but clocks and what depends on them."""
    volatile = ("time", "timing_s/", "perf/", "checkpoint/")
    return [{key: value for key, value in record.items() if not key.startswith(volatile)} for record in records]


def without_hub(records):
    """without_times() and without what only a run with rollout workers has."""
    only = ("async/", "training/groups_dropped_stale")
    return [{key: value for key, value in record.items() if not key.startswith(only)} for record in without_times(records)]


def serials(run):
    """Of the prompts that were trained on, in the order of completions.jsonl; their run logs all completions."""
    lines = (pathlib.Path(run) / "completions.jsonl").read_text().split("\n")  # splitlines() cuts in texts too
    return [json.loads(line)["serial"] for line in lines if line]


def tensors(path):
    """{name: bytes} of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    return {
        name: data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__"
    }


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self.addCleanup)

    def config(self, text, name="config.toml"):
        (self.folder / name).write_text(text)
        return name

    def assert_error(self, result, code, *words):
        self.assertEqual(result.code, code, result.err)
        message = result.err.strip().splitlines()
        self.assertTrue(message, "a message on standard error")
        for word in words:
            self.assertIn(word, result.err)
        self.assertNotIn("frame #", result.err)  # never a stack trace
        self.assertNotIn("bug", result.err)


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
