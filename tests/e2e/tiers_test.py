"""Checkpoints in several tiers and on several nodes' disks: whatever is lost, the run goes on with the same bits."""
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile

import harness

CONFIG = harness.TINY.replace("num_prompts = 64", "num_prompts = 8") + """
[checkpoint]
local_every_steps = 0
[[stage]]
name = "grpo"
algo.preset = "grpo"
train = {num_prompts_per_step = 4, max_steps = 60}
optim = {learning_rate = 1e-3}
"""
LONG = "--train.max_steps=300"  # for runs that are killed under way: 60 steps take a second


class Tiers(harness.Case):
    def setUp(self):
        super().setUp()
        self.config(CONFIG)

    def run_to_end(self, name, *arguments, check=0):
        return harness.temper("run", "config.toml", f"--run.name={name}", *arguments, cwd=self.folder, check=check)

    def kill_at(self, name, saved, *arguments):
        """Starts a run and kills it, its ranks too, once a checkpoint that matches the pattern is committed."""
        process = subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}", *arguments], cwd=self.folder,
                                   stderr=subprocess.PIPE, text=True)
        harness.wait_until(lambda: list(self.folder.glob(f"{saved}/COMMITTED")) or process.poll() is not None, saved)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        harness.end_all_in(self.folder)
        self.assertEqual(process.returncode, -signal.SIGKILL, err)

    def weights(self, name):
        return harness.tensors(self.folder / "runs" / name / "model" / "model.safetensors")

    def test_a_killed_run_goes_on_from_memory(self):
        self.run_to_end("whole", LONG)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            tiers = (LONG, f"--checkpoint.ram_dir={memory}", "--checkpoint.ram_every_steps=1")
            (self.folder / "memory").symlink_to(memory)
            self.kill_at("killed", "memory/killed/grpo/step_0000[1-9]?", *tiers)
            listed = harness.temper("checkpoint", "ls", "runs/killed", cwd=self.folder, check=0)
            self.assertIn(f"ram  {memory}/killed/grpo/step_", listed.out)
            status = json.loads(harness.temper("status", "runs/killed", "--json", cwd=self.folder, check=0).out)
            lag = {tier["tier"]: tier["lag_steps"] for tier in status["checkpoints"]}
            self.assertEqual(lag["ram"], 0)
            self.assertGreaterEqual(lag["local"], 4)
            result = self.run_to_end("killed", *tiers)
            self.assertIn("(ram tier)", result.err)
            self.assertEqual(list(pathlib.Path(memory, "killed").glob("*/step_*")), [], "memory is given back")
        self.assertEqual(self.weights("killed"), self.weights("whole"))
        self.assertEqual(harness.without_times(harness.metrics(self.folder / "runs" / "killed")),
                         harness.without_times(harness.metrics(self.folder / "runs" / "whole")))

    def test_a_lost_run_directory_comes_back_from_the_durable_folder(self):
        self.run_to_end("whole", LONG)
        tiers = (LONG, "--checkpoint.durable_dir=durable", "--checkpoint.durable_every_steps=3")
        self.kill_at("lost", "durable/lost/grpo/step_??????", *tiers)
        shutil.rmtree(self.folder / "runs" / "lost")
        result = self.run_to_end("lost", *tiers)
        self.assertIn("(durable tier)", result.err)
        self.assertEqual(self.weights("lost"), self.weights("whole"))
        steps = sorted(path.name for path in (self.folder / "durable" / "lost" / "grpo").glob("step_*"))
        self.assertEqual((len(steps), steps[-1]), (2, "step_000300"))
        for path in ("runs/lost", "durable/lost"):
            harness.temper("checkpoint", "verify", path, cwd=self.folder, check=0)
        self.assertEqual(harness.metrics(self.folder / "runs" / "lost")[-1]["checkpoint/durable/failed_saves"], 0)

    def test_a_durable_folder_that_fails_is_counted_and_the_training_goes_on(self):
        place = self.folder / "durable" / "tiny" / "grpo"
        process = subprocess.Popen([harness.TEMPER, "run", "config.toml", "--checkpoint.durable_dir=durable",
                                    "--checkpoint.durable_every_steps=2"], cwd=self.folder, stderr=subprocess.PIPE, text=True)
        harness.wait_until(lambda: place.exists() or process.poll() is not None, "the durable folder")
        harness.wait_until(lambda: list(place.glob("step_*/COMMITTED")) or process.poll() is not None, "a first copy")
        place.rename(place.with_name("gone"))
        place.write_text("a file where the folder was")
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn("is not in checkpoint.durable_dir, training goes on", err)

    def test_a_durable_folder_that_cannot_be_used_is_refused_at_the_start(self):
        (self.folder / "file").write_text("x")
        self.assert_error(self.run_to_end("tiny", "--checkpoint.durable_dir=file", check=None), 3, "checkpoint.durable_dir cannot be used", "file")
        self.assert_error(self.run_to_end("tiny", "--checkpoint.durable_dir=same", "--checkpoint.ram_dir=same", check=None), 2,
                          'checkpoint.ram_dir and checkpoint.durable_dir are both "same"')

    def test_resume_never_leaves_what_lies_outside_the_run_directory_alone(self):
        outside = ("--checkpoint.local_dir=outside", "--checkpoint.local_every_steps=4")
        self.run_to_end("tiny", *outside)
        earlier = self.weights("tiny")
        self.run_to_end("tiny", *outside, "--checkpoint.resume=never", "--run.seed=8")
        names = [path.name for path in (self.folder / "outside" / "tiny" / "grpo").glob("step_*")]
        self.assertEqual(sorted(name for name in names if "aside" not in name), ["step_000056", "step_000060"])
        self.assertEqual(sum(name.startswith(("step_000056.aside-", "step_000060.aside-")) for name in names), 2)
        self.assertEqual(harness.metrics(self.folder / "runs" / "tiny")[0]["step"], 0)
        self.assertNotEqual(self.weights("tiny"), earlier)
        self.assertEqual(harness.tensors(self.folder / "runs" / "tiny.old-1" / "model" / "model.safetensors"), earlier)

    def test_one_of_two_nodes_disks_may_be_lost_and_any_checkpoint_gives_the_model(self):
        ranks = (LONG, "--train.ranks=2", "--train.shard=full")
        nodes = (*ranks, "--checkpoint.local_dir=node{rank}", "--checkpoint.local_every_steps=2", "--checkpoint.replicate=1")
        self.run_to_end("whole", *ranks)
        self.kill_at("nodes", "node0/nodes/grpo/step_0000[1-9]?", *nodes)
        harness.temper("checkpoint", "verify", "node1/nodes", cwd=self.folder, check=0)
        shutil.rmtree(self.folder / "node1")
        result = self.run_to_end("nodes", *nodes)
        self.assertIn("came from other ranks' disks", result.err)
        self.assertEqual(self.weights("nodes"), self.weights("whole"))
        last = harness.metrics(self.folder / "runs" / "nodes")[-1]
        self.assertEqual(last["checkpoint/partner/failed_saves"], 0)
        self.assertLessEqual(last["checkpoint/partner/lag_steps"], 4)

    def assert_exported_alike(self, name):
        exported = harness.temper("checkpoint", "export", f"runs/{name}", f"--out={name}", cwd=self.folder, check=0)
        self.assertEqual(exported.out, f"{name}\n")
        for path in (self.folder / "runs" / name / "model").iterdir():
            self.assertEqual((self.folder / name / path.name).read_bytes(), path.read_bytes(), path.name)

    def test_export_gives_the_bytes_of_the_runs_own_model(self):
        self.run_to_end("one", "--train.ranks=2", "--train.shard=full", "--train.max_steps=2", "--checkpoint.export_dtype=bf16")
        self.assert_exported_alike("one")
        # From a directory, in its dtype; then with that directory gone.
        self.config(CONFIG.replace(next(line for line in CONFIG.splitlines() if line.startswith("init")), 'path = "one"'))
        self.run_to_end("two", "--train.max_steps=2")
        self.assert_exported_alike("two")
        (self.folder / "one").rename(self.folder / "moved")
        export = ("checkpoint", "export", "runs/two")
        self.assert_error(harness.temper(*export, "--out=three", cwd=self.folder), 3, "the model that the run started from is not there", "--model=DIR")
        harness.temper(*export, "--out=three", "--model=moved", "--dtype=f32", cwd=self.folder, check=0)
        self.assertEqual(sum(map(len, harness.tensors(self.folder / "three" / "model.safetensors").values())),
                         2 * sum(map(len, harness.tensors(self.folder / "two" / "model.safetensors").values())))
        self.assert_error(harness.temper(*export, "--out=three", cwd=self.folder), 3, "exists already")
        self.assert_error(harness.temper(*export, cwd=self.folder), 2, "--out=DIR")


if __name__ == "__main__":
    harness.main()
