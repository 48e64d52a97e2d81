"""A run that is stopped, killed or starved of disk goes on as if nothing had happened: the same bits."""
import os
import shutil
import signal
import subprocess
import time

import harness

CONFIG = harness.TINY + """
[checkpoint]
local_every_steps = 3
[[stage]]
name = "sft"
algo.preset = "sft"
train = {num_prompts_per_step = 16, max_steps = 10}
optim = {learning_rate = 1e-3}
[[stage]]
name = "grpo"
algo = {preset = "grpo", kl_coef = 0.01}
train = {num_prompts_per_step = 4, max_steps = 14}
optim = {learning_rate = 1e-3, lr_scheduler_type = "linear"}
"""


class Resume(harness.Case):
    def undisturbed(self):
        self.config(CONFIG)
        harness.temper("run", "config.toml", "--run.name=whole", cwd=self.folder, check=0)
        return self.folder / "runs" / "whole"

    def assert_same_run(self, one, other):
        self.assertEqual(harness.without_times(harness.metrics(one)), harness.without_times(harness.metrics(other)))
        self.assertEqual((one / "completions.jsonl").read_text(), (other / "completions.jsonl").read_text())
        self.assertEqual(harness.tensors(one / "model" / "model.safetensors"), harness.tensors(other / "model" / "model.safetensors"))

    def start(self, name):
        return subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}"], cwd=self.folder,
                                stderr=subprocess.PIPE, text=True)

    def wait_for_step(self, name, stage, step, process):
        path = self.folder / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and f'"stage":"{stage}","step":{step},' in path.read_text().replace(": ", ":").replace(", ", ","):
                return
            time.sleep(0.005)

    def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(self):
        whole = self.undisturbed()
        for kill, (stage, step) in enumerate([("sft", 5), ("grpo", 2), ("grpo", 7), ("grpo", 12)]):
            process = self.start("killed")
            self.wait_for_step("killed", stage, step, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        harness.temper("run", "config.toml", "--run.name=killed", cwd=self.folder, check=0)
        self.assert_same_run(whole, self.folder / "runs" / "killed")

    def test_a_stop_request_saves_exits_75_and_says_how_to_go_on(self):
        whole = self.undisturbed()
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            process = self.start("stopped")
            self.wait_for_step("stopped", "grpo", {signal.SIGINT: 1, signal.SIGTERM: 4, signal.SIGUSR1: 8}[stop], process)
            process.send_signal(stop)
            _, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 75, err)
            self.assertIn("temper run config.toml --run.name=stopped", err)
        harness.temper("run", "config.toml", "--run.name=stopped", cwd=self.folder, check=0)
        self.assert_same_run(whole, self.folder / "runs" / "stopped")

    def test_a_damaged_newest_checkpoint_is_passed_over_loudly(self):
        whole = self.undisturbed()
        process = self.start("damaged")
        self.wait_for_step("damaged", "grpo", 10, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        folder = self.folder / "runs" / "damaged" / "checkpoints" / "grpo"
        newest = sorted(path for path in folder.iterdir() if path.name.startswith("step_"))[-1]
        shard = newest / "shard_00000.h5"
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        os.chmod(shard, 0o644)
        shard.write_bytes(data)
        result = harness.temper("run", "config.toml", "--run.name=damaged", cwd=self.folder, check=0)
        self.assertIn(newest.name, result.err)
        self.assert_same_run(whole, self.folder / "runs" / "damaged")

    def test_other_data_is_refused_unless_allowed(self):
        (self.folder / "a.jsonl").write_text("".join(f'{{"prompt": "copy {c}=", "answer": "{c}"}}\n' for c in "abcdefgh"))
        (self.folder / "b.jsonl").write_text("".join(f'{{"prompt": "copy {c}=", "answer": "{c}"}}\n' for c in "ijklmnop"))
        base = harness.TINY.replace('task = "copy"', 'path = "a.jsonl"') + """
[reward]
functions = ["exact"]
[checkpoint]
local_every_steps = 1
[train]
num_prompts_per_step = 2
max_steps = 400
"""
        self.config(base)
        process = self.start("tiny")
        self.wait_for_step("tiny", "grpo", 3, process)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        arguments = ("run", "config.toml", "--data.path=b.jsonl", "--train.max_steps=8")
        self.assert_error(harness.temper(*arguments, cwd=self.folder), 2, "other data", "checkpoint.allow_other_data=true")
        harness.temper(*arguments, "--checkpoint.allow_other_data=true", cwd=self.folder, check=0)

    def test_resume_never_keeps_the_earlier_run_under_another_name(self):
        whole = self.undisturbed()
        harness.temper("run", "config.toml", "--run.name=whole", "--checkpoint.resume=never", cwd=self.folder, check=0)
        self.assert_same_run(self.folder / "runs" / "whole.old-1", whole)

    def test_a_second_run_in_the_same_directory_is_refused(self):
        self.config(CONFIG)
        process = self.start("tiny")
        self.wait_for_step("tiny", "sft", 1, process)
        result = harness.temper("run", "config.toml", "--run.name=tiny", cwd=self.folder)
        process.kill()
        process.communicate()
        self.assert_error(result, 2, "in use by host", f"pid {process.pid}")


if __name__ == "__main__":
    harness.main()
