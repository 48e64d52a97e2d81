"""Several trainer ranks on this machine: they learn as one does, stop and go on together, and one that dies is named."""
import os
import pathlib
import signal
import subprocess
import time

import harness

GRPO = harness.sft_then_grpo(10)
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


class Ranks(harness.Case):
    def setUp(self):
        super().setUp()
        self.config(GRPO)

    def run_path(self, name):
        return self.folder / "runs" / name

    def start(self, name, *more):
        return subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}", *more], cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def wait_for_step(self, name, stage, step):
        path = self.run_path(name) / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if path.exists() and f'"stage":"{stage}","step":{step},' in path.read_text().replace(": ", ":").replace(", ", ","):
                return
            time.sleep(0.01)
        self.fail(f"{name} did not reach step {step} of {stage}")

    def losses(self, name):
        return [record["loss"] for record in harness.metrics(self.run_path(name)) if "loss" in record]

    def test_two_ranks_learn_as_one_does(self):
        harness.temper("run", "config.toml", "--run.name=one", cwd=self.folder, check=0)
        one = self.losses("one")
        for shard in ("none", "optimizer", "full"):
            result = harness.temper("run", "config.toml", f"--run.name={shard}", "--train.ranks=2", f"--train.shard={shard}", cwd=self.folder, check=0)
            two = self.losses(shard)
            self.assertEqual(len(one), len(two))
            for a, b in zip(one[:20], two[:20]):  # sft: the same examples
                self.assertAlmostEqual(a, b, delta=1e-4 * max(abs(a), 0.1))
            self.assertTrue((self.run_path(shard) / "model" / "config.json").exists())
            self.assertTrue((self.run_path(shard) / "logs" / "rank_1.log").exists())
            self.assertEqual(result.err.count("done: model in"), 1)  # one rank speaks
            for record in harness.metrics(self.run_path(shard)):
                if record["stage"] == "grpo" and record["step"] > 0:
                    self.assertEqual(record["sampling/sampling_logp_difference/max"], 0)

    def test_two_ranks_share_each_layer(self):
        harness.temper("run", "config.toml", "--run.name=one", cwd=self.folder, check=0)
        one = self.losses("one")
        shared = ["--train.ranks=2", "--train.tensor_parallel=2"]
        harness.temper("run", "config.toml", "--run.name=two", *shared, cwd=self.folder, check=0)
        two = self.losses("two")
        self.assertEqual(len(one), len(two))
        for a, b in zip(one[:20], two[:20]):  # sft: the same examples
            self.assertAlmostEqual(a, b, delta=1e-4 * max(abs(a), 0.1))
        for record in harness.metrics(self.run_path("two")):
            if record["stage"] == "grpo" and record["step"] > 0:
                self.assertLess(record["sampling/sampling_logp_difference/max"], 1e-3)
        sizes = [{tensor: len(data) for tensor, data in harness.tensors(self.run_path(name) / "model" / "model.safetensors").items()}
                 for name in ("one", "two")]
        self.assertEqual(*sizes)

    def test_shared_layers_stop_and_go_on_with_one_rank(self):
        process = self.start("narrow", "--train.ranks=2", "--train.tensor_parallel=2", "--stage.grpo.train.max_steps=60")
        self.wait_for_step("narrow", "grpo", 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, err)
        result = harness.temper("run", "config.toml", "--run.name=narrow", "--stage.grpo.train.max_steps=60", cwd=self.folder, check=0)
        self.assertIn("resumed at step", result.err)

    def test_layers_that_cannot_be_shared_are_refused(self):
        result = harness.temper("run", "config.toml", "--run.name=three", "--train.ranks=3", "--train.tensor_parallel=3", cwd=self.folder, check=2)
        self.assertIn("train.tensor_parallel = 3: it has 2 key/value heads", result.err)
        result = harness.temper("run", "config.toml", "--run.name=three", "--train.ranks=3", "--train.tensor_parallel=2", cwd=self.folder, check=2)
        self.assertIn("train.ranks = 3 cannot be grouped by train.tensor_parallel = 2", result.err)
        result = harness.temper("run", "config.toml", "--run.name=three", "--train.tensor_parallel=2", cwd=self.folder, check=2)
        self.assertIn("train.tensor_parallel = 2: 1 rank cannot be grouped so", result.err)

    def test_the_same_bits_run_after_run(self):
        for name in ("a", "b"):
            harness.temper("run", "config.toml", f"--run.name={name}", "--train.ranks=2", cwd=self.folder, check=0)
        self.assertEqual(harness.without_times(harness.metrics(self.run_path("a"))), harness.without_times(harness.metrics(self.run_path("b"))))
        self.assertEqual((self.run_path("a") / "completions.jsonl").read_text(), (self.run_path("b") / "completions.jsonl").read_text())

    def test_a_killed_rank_is_named_and_the_run_goes_on(self):
        long = "--stage.grpo.train.max_steps=100"
        harness.temper("run", "config.toml", "--run.name=whole", "--train.ranks=2", long, cwd=self.folder, check=0)
        process = self.start("killed", "--train.ranks=2", "--train.max_restarts=0", long)
        self.wait_for_step("killed", "grpo", 3)
        harness.wait_for_checkpoint(process, self.run_path("killed"), "grpo")
        self.assertEqual(sorted(harness.ranks_of(self.folder, "killed")), [0, 1])
        harness.signal_rank(process, self.folder, "killed", 1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 4, err)
        self.assertIn("rank 1 was killed", err)
        result = harness.temper("run", "config.toml", "--run.name=killed", "--train.ranks=2", long, cwd=self.folder, check=0)
        self.assertIn("resumed at step", result.err)
        self.assertEqual(harness.without_times(harness.metrics(self.run_path("whole"))),
                         harness.without_times(harness.metrics(self.run_path("killed"))))
        self.assertEqual(harness.tensors(self.run_path("whole") / "model" / "model.safetensors"),
                         harness.tensors(self.run_path("killed") / "model" / "model.safetensors"))

    def test_a_stopped_rank_is_named(self):
        process = self.start("late", "--train.ranks=2", "--train.max_restarts=0", "--train.comm_timeout_s=6", "--stage.grpo.train.max_steps=1000")
        self.wait_for_step("late", "grpo", 2)
        pid = harness.signal_rank(process, self.folder, "late", 1, signal.SIGSTOP)
        _, err = process.communicate(timeout=90)
        self.assertEqual(process.returncode, 4, err)
        self.assertIn("rank 1 (last:", err)
        self.assertIn("its process is stopped", err)
        deadline = time.monotonic() + 20  # mpirun ends it with SIGKILL after a while
        while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertFalse(pathlib.Path(f"/proc/{pid}").exists())

    def test_a_stop_request_reaches_the_ranks(self):
        long = "--stage.grpo.train.max_steps=60"
        for name, how in (("halves", ["--train.shard=optimizer"]), ("parts", ["--train.shard=full"]), ("replicas", ["--train.shard=full", "--train.replicas=2"])):
            process = self.start(name, "--train.ranks=2", *how, long)
            self.wait_for_step(name, "grpo", 2)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, err)
            self.assertIn("checkpoint written", err)
            # One rank can go on where two stopped, whatever each had of the state: the checkpoint does not know their number.
            result = harness.temper("run", "config.toml", f"--run.name={name}", long, cwd=self.folder, check=0)
            self.assertIn("resumed at step", result.err)

    def test_ranks_that_do_not_fit_together_are_refused(self):
        temper = [str(harness.TEMPER), "train", "config.toml"]
        command = [*MPIRUN, "-n", "1", *temper, ":", "-n", "1", *temper, "--optim.learning_rate=1e-3"]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("learning_rate", result.stderr)
        self.assertIn("0.001", result.stderr)
        self.assertIn("rank 1", result.stderr)
        result = subprocess.run([*MPIRUN, "-n", "2", *temper, "--train.ranks=3"], cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("train.ranks = 3, but the launcher started 2", result.stderr)

    def test_a_clock_that_differs_is_said(self):
        self.config("""#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  const int code = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += 3600;
  return code;
}
""", "ahead.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", "ahead.so", "ahead.c", "-ldl"], cwd=self.folder, check=True)
        temper = [str(harness.TEMPER), "train", "config.toml", "--train.max_steps=1"]
        command = [*MPIRUN, "-n", "1", *temper, ":", "-n", "1", "env", f"LD_PRELOAD={self.folder / 'ahead.so'}", *temper]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"the clock of rank 1's machine \(.*\) is 3[56]\d\d s ahead of that of rank 0")

    def test_one_train_process_is_a_run(self):
        result = harness.temper("train", "config.toml", "--run.name=alone", "--train.max_steps=2", cwd=self.folder, check=0)
        self.assertIn("done: model in", result.err)

    def test_the_same_error_on_all_ranks_ends_them(self):
        result = harness.temper("run", "config.toml", "--run.name=bad", "--train.ranks=2", "--optim.learning_rate=1e30", "--optim.max_grad_norm=0",
                                cwd=self.folder)
        self.assertEqual(result.code, 6, result.err)
        self.assertIn("optim.learning_rate", result.err)


if __name__ == "__main__":
    harness.main()
