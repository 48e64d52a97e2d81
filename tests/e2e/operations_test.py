"""A run as its operator sees it: status, metrics over HTTP, ranks that die and are started again."""
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request

import harness

STEPS = 150
GRPO = harness.sft_then_grpo(STEPS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Operations(harness.Case):
    def setUp(self):
        super().setUp()
        self.config(GRPO)

    def run_path(self, name):
        return self.folder / "runs" / name

    def start(self, name, *more, **environment):
        process = subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}", *more], cwd=self.folder, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, **environment})
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def status(self, name):
        return json.loads(harness.temper("status", f"runs/{name}", "--json", cwd=self.folder, check=0).out)

    def wait_for_step(self, name, step):
        path = self.run_path(name) / "metrics.jsonl"
        harness.wait_until(lambda: path.exists() and f'"stage": "grpo", "step": {step},' in path.read_text(), f"step {step} of {name}")

    def wait_for_ranks(self, name, but=()):
        """{rank: pid} of two ranks that are none of these."""
        def both():
            ranks = harness.ranks_of(self.folder, name)
            return len(ranks) == 2 and not set(ranks.values()) & set(but) and ranks
        return harness.wait_until(both, f"the ranks of {name}")

    def assert_same_run(self, one, other):
        self.assertEqual(harness.without_times(harness.metrics(self.run_path(one))), harness.without_times(harness.metrics(self.run_path(other))))
        self.assertEqual(harness.tensors(self.run_path(one) / "model" / "model.safetensors"),
                         harness.tensors(self.run_path(other) / "model" / "model.safetensors"))

    def test_status_of_a_run_that_lives_dies_and_finishes(self):
        process = self.start("one")
        self.wait_for_step("one", 4)
        status = self.status("one")
        self.assertEqual(status["state"], "running")
        self.assertEqual(status["status"]["pid"], process.pid)
        self.assertIn(f"pid {process.pid}", status["lock"])
        self.assertEqual([stage["name"] for stage in status["status"]["stages"]], ["sft", "grpo"])
        self.assertIn("reward", status["metrics"])
        self.assertEqual([saves["stage"] for saves in status["checkpoints"]], ["sft", "grpo"])
        self.assertEqual(status["checkpoints"][0]["newest"]["step"], 20)
        process.kill()
        process.wait()
        text = harness.temper("status", "runs/one", cwd=self.folder, check=0).out
        self.assertIn(": dead", text)
        command = re.search(r"It continues with: (.*)", text).group(1)
        self.assertIn("temper run config.toml --run.name=one", command)
        subprocess.run(command.replace("temper run", f"{harness.TEMPER} run --log-level=error"), shell=True, check=True, timeout=120)
        for _ in range(2):
            status = self.status("one")
            self.assertEqual((status["state"], status["status"]["step"], status["status"]["saved_step"]), ("finished", STEPS, STEPS))
            harness.temper("run", "config.toml", "--run.name=one", cwd=self.folder, check=0)  # changes nothing

    def test_status_of_runs_that_stop_and_fail(self):
        process = self.start("one")
        self.wait_for_step("one", 2)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        status = self.status("one")
        self.assertEqual((status["state"], status["status"]["exit_code"]), ("stopped", 75))
        result = harness.temper("run", "config.toml", "--run.name=bad", "--optim.learning_rate=1e30", "--optim.max_grad_norm=0", cwd=self.folder)
        self.assertEqual(result.code, 6)
        status = self.status("bad")
        self.assertEqual((status["state"], status["status"]["exit_code"]), ("failed", 6))
        self.assertIn(status["status"]["error"], result.err)
        self.assertIn(status["status"]["error"], (self.run_path("bad") / "logs" / "run.log").read_text())
        self.assert_error(harness.temper("status", "config.toml", cwd=self.folder), 3, "no such folder")

    def test_prometheus_scrapes_a_run(self):
        address = f"127.0.0.1:{free_port()}"
        self.start("one", f"--log.prometheus={address}", "--stage.grpo.train.max_steps=2000")
        self.wait_for_step("one", 2)
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
        for line in ('temper_steps_total{stage="sft"} 20', 'temper_max_steps{stage="grpo"} 2000', 'temper_reward{stage="grpo"} ',
                     'temper_saves_total{stage="grpo"} ', 'temper_failed_saves_total{stage="grpo"} 0'):
            self.assertIn(line, text)
        for line in text.splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) .*|(temper|exposer)_[a-zA-Z0-9_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? \S+)$')
        second = harness.temper("run", "config.toml", "--run.name=two", f"--log.prometheus={address}", cwd=self.folder)
        self.assert_error(second, 2, f'log.prometheus = "{address}"', "another process has that port")
        self.assert_error(harness.temper("run", "config.toml", "--log.prometheus=9464", cwd=self.folder), 2, "is not HOST:PORT")

    def test_killed_ranks_are_started_again_and_the_run_is_the_undisturbed_one(self):
        harness.temper("run", "config.toml", "--run.name=whole", "--train.ranks=2", cwd=self.folder, check=0)
        process = self.start("killed", "--train.ranks=2")
        ranks = {}
        for rank, step in ((1, 6), (0, 20)):
            ranks = self.wait_for_ranks("killed", but=ranks.values())
            self.wait_for_step("killed", step)
            harness.wait_for_checkpoint(process, self.run_path("killed"), "grpo")
            alive = [(r, "alive", pid) for r, pid in sorted(ranks.items())]
            # A rank that has just begun has not signed yet.
            harness.wait_until(lambda: [(one["rank"], one["state"], one["pid"]) for one in self.status("killed")["ranks"]] == alive, "the ranks' signs")
            status = self.status("killed")
            self.assertEqual(status["status"]["starts"], 2 - rank)
            harness.signal_rank(process, self.folder, "killed", rank)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        for restart, rank in ((1, 1), (2, 0)):
            self.assertRegex(err, rf"rank {rank} was killed by signal 9 \(Killed\); restart {restart} of 3 \(train.max_restarts\) in \d s, from the newest checkpoint")
        self.assertIn("restart 2 of 3", (self.run_path("killed") / "logs" / "launcher.log").read_text())
        self.assertIn("resumed at step", err)
        for log, rank in (("run.log", 0), ("rank_1.log", 1)):
            self.assertRegex((self.run_path("killed") / "logs" / log).read_text(), rf"rank={rank} stage=grpo step=\d+ " if rank == 0 else "rank=1 ")
        self.assert_same_run("whole", "killed")

    def test_restarts_have_an_end(self):
        process = self.start("killed", "--train.ranks=2", "--train.max_restarts=1", "--stage.grpo.train.max_steps=2000")
        ranks = {}
        for _ in range(2):
            ranks = self.wait_for_ranks("killed", but=ranks.values())
            harness.signal_rank(process, self.folder, "killed", 0)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 4, err)
        self.assertIn("after 1 restart", err)

    def test_what_restarting_does_not_mend_is_not_restarted(self):
        for arguments, code in ((("--optim.learning_rate=1e30", "--optim.max_grad_norm=0"), 6), (("--train.tensor_parallel=2", "--model.init.num_kv_heads=1"), 2)):
            result = harness.temper("run", "config.toml", "--run.name=bad", "--train.ranks=2", *arguments, cwd=self.folder)
            self.assertEqual(result.code, code, result.err)
            self.assertNotIn("restart 1", result.err)

    def test_a_fresh_start_is_fresh_only_once(self):
        harness.temper("run", "config.toml", "--run.name=whole", "--train.ranks=2", cwd=self.folder, check=0)
        process = self.start("whole", "--train.ranks=2", "--checkpoint.resume=never")
        harness.wait_until(lambda: (self.folder / "runs" / "whole.old-1").exists(), "the earlier run under another name")
        self.wait_for_step("whole", 5)
        harness.wait_for_checkpoint(process, self.run_path("whole"), "grpo")
        harness.signal_rank(process, self.folder, "whole", 1)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn("resumed at step", err)
        self.assertFalse((self.folder / "runs" / "whole.old-2").exists())
        self.assert_same_run("whole", "whole.old-1")

    def test_a_requeued_job_waits_for_its_earlier_start_and_another_job_does_not(self):
        first = self.start("one", "--stage.grpo.train.max_steps=2000", SLURM_JOB_ID="7")
        self.wait_for_step("one", 4)
        harness.wait_for_checkpoint(first, self.run_path("one"), "grpo")
        other = self.start("one", SLURM_JOB_ID="8")
        _, err = other.communicate(timeout=60)
        self.assertEqual(other.returncode, 2, err)
        self.assertIn(f"in use by host {socket.gethostname()} pid {first.pid} of Slurm job 7. Wait for it", err)
        self.assertEqual(self.status("one")["status"]["slurm_job"], "7")
        again = self.start("one", "--stage.grpo.train.max_steps=20", SLURM_JOB_ID="7")
        self.assertIn("still held by an earlier start of this job", again.stderr.readline())
        first.kill()
        _, err = again.communicate(timeout=120)
        self.assertEqual(again.returncode, 0, err)
        self.assertIn("resumed at step", err)

    def test_tasks_of_srun_without_pmix_are_refused(self):
        process = subprocess.run([harness.TEMPER, "train", "config.toml"], cwd=self.folder, capture_output=True, text=True, timeout=60,
                                 env={**os.environ, "SLURM_STEP_NUM_TASKS": "2"})
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("srun started 2 tasks without PMIx", process.stderr)


if __name__ == "__main__":
    harness.main()
