"""Rollout workers as processes of their own: the one-process run's results, faults of every kind, other workers refused."""
import json
import os
import random
import signal
import subprocess
import time

import harness

ARITHMETIC = """
[run]
name = "workers"
seed = 7
dtype = "f32"
[model]
init = {family = "llama", hidden_size = 64, num_layers = 2, num_heads = 2, intermediate_size = 128, max_position_embeddings = 64}
[data]
task = "arithmetic"
generated = {max_operand = 5}
[eval]
num_prompts = 8
[rollout]
num_generations = 4
max_completion_length = 16
[reward]
functions = ["task", "length"]
length.target = 9
[train]
num_prompts_per_step = 4
[optim]
learning_rate = 1e-4
[checkpoint]
local_every_steps = 5
[log]
tensorboard = false
completions = 1000
"""

def results(run):
    return harness.without_hub(harness.metrics(run))


class Workers(harness.Case):
    def run_path(self, name):
        return self.folder / "runs" / name

    def start(self, *more, name="workers"):
        process = subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}", *more], cwd=self.folder,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def steps(self, name="workers"):
        path = self.run_path(name) / "metrics.jsonl"
        return len(path.read_text().splitlines()) - 1 if path.exists() else -1

    def log_of(self, worker, name="workers"):
        return (self.run_path(name) / "logs" / f"worker_{worker}.log").read_text()

    def test_on_policy_workers_give_the_bits_of_one_process(self):
        self.config(ARITHMETIC)
        common = ["--run.deterministic=true", "--train.max_steps=3"]
        harness.temper("run", "config.toml", "--run.name=inline", *common, cwd=self.folder, check=0)
        harness.temper("run", "config.toml", "--run.name=workers", "--rollout.workers=2", *common, cwd=self.folder, check=0)
        self.assertEqual(results(self.run_path("inline")), results(self.run_path("workers")))
        self.assertEqual((self.run_path("inline") / "completions.jsonl").read_text(),
                         (self.run_path("workers") / "completions.jsonl").read_text())
        self.assertEqual(harness.tensors(self.run_path("inline") / "model" / "model.safetensors"),
                         harness.tensors(self.run_path("workers") / "model" / "model.safetensors"))
        self.assertFalse((self.run_path("workers") / "hub.json").exists())
        self.assertEqual((self.run_path("workers") / "keys").stat().st_mode & 0o777, 0o700)

    def test_two_ranks_share_what_workers_bring(self):
        self.config(ARITHMETIC)
        common = ["--run.deterministic=true", "--train.max_steps=2", "--train.ranks=2", "--train.shard=full"]
        harness.temper("run", "config.toml", "--run.name=inline", *common, cwd=self.folder, check=0)
        harness.temper("run", "config.toml", "--run.name=workers", "--rollout.workers=1", *common, cwd=self.folder, check=0)
        self.assertEqual(results(self.run_path("inline")), results(self.run_path("workers")))

    def test_a_pipeline_hands_its_model_to_workers(self):
        self.config(harness.sft_then_grpo(3))
        harness.temper("run", "config.toml", "--run.name=inline", cwd=self.folder, check=0)
        harness.temper("run", "config.toml", "--run.name=workers", "--rollout.workers=1", cwd=self.folder, check=0)
        self.assertEqual(results(self.run_path("inline")), results(self.run_path("workers")))

    def test_training_goes_on_while_workers_die_and_stall(self):
        self.config(ARITHMETIC)
        steps = 200
        process = self.start("--rollout.workers=2", "--async.max_staleness=1", f"--train.max_steps={steps}")
        chance = random.Random(3)
        stopped, faults = [], 0
        harness.wait_until(lambda: self.steps() >= 1, "the first step")
        niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in harness.workers_of(process.pid).values()}
        self.assertEqual(niceness, {min(19, os.getpriority(os.PRIO_PROCESS, process.pid) + 5)})  # the trainer goes first
        while process.poll() is None and self.steps() < steps - 2:
            for pid in stopped:
                harness.send(pid, signal.SIGCONT)
            stopped = []
            found = list(harness.workers_of(process.pid).values())
            if found:
                victim, what = chance.choice(found), chance.choice([signal.SIGKILL, signal.SIGSTOP])
                hit = harness.send(victim, what)
                faults += hit
                if hit and what == signal.SIGSTOP:
                    stopped.append(victim)
            time.sleep(chance.uniform(0.05, 0.4))
        for pid in stopped:
            harness.send(pid, signal.SIGCONT)
        _, err = process.communicate(timeout=180)
        self.assertEqual(process.returncode, 0, err)
        self.assertGreaterEqual(faults, 5)
        records = harness.metrics(self.run_path("workers"))[1:]
        self.assertEqual([record["step"] for record in records], list(range(1, steps + 1)))
        for record in records:
            self.assertLessEqual(record["training/off_policy/trajectory_staleness/max"], 1)
            self.assertGreaterEqual(record["training/off_policy/trajectory_staleness/min"], 0)
            self.assertEqual(record["training/groups_failed"], 0)
            self.assertIn("async/trainer/idle_ratio", record)
            self.assertIn("async/rollout/idle_ratio", record)
            self.assertIn("training/groups_dropped_stale", record)
            self.assertIn("timing_s/wait_for_groups", record)
        # Every step had its groups, and no prompt came twice.
        serials = harness.serials(self.run_path("workers"))
        self.assertEqual(len(serials), 4 * steps)
        self.assertEqual(len(set(serials)), len(serials))

    def test_weights_that_change_under_way_and_completions_that_move_lose_nothing(self):
        self.config(ARITHMETIC.replace("max_completion_length = 16", "max_completion_length = 48\nmax_num_seqs = 16"))
        steps = 60
        for policy in ("wait", "drop"):
            with self.subTest(policy=policy):
                process = self.start("--rollout.workers=2", "--async.max_staleness=2", "--async.in_flight_updates=true",
                                     f"--async.staleness_policy={policy}", f"--train.max_steps={steps}", name=policy)
                harness.wait_until(lambda: self.steps(policy) >= 1, "the first step")
                chance, told = random.Random(5), []
                while process.poll() is None and self.steps(policy) < steps - 5:
                    found = [pid for pid in harness.workers_of(process.pid).values() if pid not in told]
                    if found:  # it hands back what it has begun, and is started again
                        told.append(chance.choice(found))
                        harness.send(told[-1], signal.SIGTERM)
                    time.sleep(chance.uniform(0.2, 0.6))
                _, err = process.communicate(timeout=180)
                self.assertEqual(process.returncode, 0, err)
                records = harness.metrics(self.run_path(policy))[1:]
                self.assertEqual([record["step"] for record in records], list(range(1, steps + 1)))
                self.assertGreater(max(record["training/off_policy/mixed_versions"] for record in records), 0)
                self.assertGreater(sum(record["async/rollout/prompts_continued"] for record in records), 0)
                self.assertLessEqual(max(record["training/off_policy/trajectory_staleness/max"] for record in records), 2)
                self.assertEqual(max(record["training/groups_failed"] for record in records), 0)
                if policy == "wait":
                    self.assertEqual(sum(record["training/groups_dropped_stale"] for record in records), 0)
                serials = harness.serials(self.run_path(policy))
                self.assertEqual(len(serials), 4 * steps)
                self.assertEqual(len(set(serials)), len(serials))
                # Nothing is lost: all but what the last steps left under way is trained on.
                self.assertEqual(set(range(4 * (steps - 6))) - set(serials), set())

    def test_a_run_that_was_ahead_goes_on_where_it_stopped(self):
        self.config(ARITHMETIC)
        steps = 40
        ahead = ["--rollout.workers=1", "--async.max_staleness=2", f"--train.max_steps={steps}", "--checkpoint.local_every_steps=2"]
        process = self.start(*ahead)
        harness.wait_until(lambda: self.steps() >= 5, "step 5")
        process.kill()
        process.communicate()
        refused = harness.temper("run", "config.toml", "--run.name=workers", cwd=self.folder)
        self.assert_error(refused, 2, "ran ahead of the trainer", "rollout.workers")
        process = self.start(*ahead)
        harness.wait_until(lambda: self.steps() >= 8, "step 8")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 75, err)
        self.assertIn("resumed at step", err)
        harness.temper("run", "config.toml", "--run.name=workers", *ahead, cwd=self.folder, check=0)
        serials = harness.serials(self.run_path("workers"))
        self.assertEqual(sorted(serials), sorted(set(serials)))
        self.assertEqual(len(serials), 4 * steps)
        # Nothing is lost: all but what the last steps left under way is trained on.
        self.assertEqual(set(range(4 * (steps - 6))) - set(serials), set())

    def test_workers_join_by_hand_and_leave_politely(self):
        self.config(ARITHMETIC)
        process = self.start("--rollout.source=hub", "--train.max_steps=5000")
        hub = self.run_path("workers") / "hub.json"
        harness.wait_until(hub.exists, "hub.json")
        command = [harness.TEMPER, "rollout", "config.toml", "--run.name=workers", "--rollout.source=hub", "--train.max_steps=5000"]
        first = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        harness.wait_until(lambda: self.steps() >= 2, "step 2")
        text = harness.wait_until(lambda: "1 workers" in (said := harness.temper("status", "runs/workers", cwd=self.folder, check=0).out) and said, "the worker in the status")
        self.assertRegex(text, r"hub +1 workers, \d without a lease, \d+ leases; [\d.]+ groups/s, \d+ groups since epoch 1")
        self.assertRegex(text, rf"worker \S+/{first.pid}: version \d+, \d leases, heard [\d.]+ s before")
        log = next((self.run_path("workers") / "logs").glob(f"worker_*_{first.pid}.log"))
        self.assertRegex(log.read_text(), rf"info worker=\S+/{first.pid} rollout worker")
        told = json.loads(hub.read_text())
        second = subprocess.Popen([*command, f"--hub={told['address']}", f"--hub-key={told['public_key']}",
                                   f"--keys={self.run_path('workers') / 'keys'}"], cwd=self.folder, stderr=subprocess.PIPE, text=True)
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=30)
        self.assertEqual(first.returncode, 0, err)
        self.assertIn("handed back", err)
        before = self.steps()
        harness.wait_until(lambda: self.steps() >= before + 3, "a step of the second worker")
        other = harness.temper("rollout", "config.toml", "--run.name=workers", "--rollout.source=hub", "--reward.length.target=3", cwd=self.folder)
        self.assert_error(other, 2, "the worker's configuration is", "the trainer's")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, err)
        second.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=30)
        self.assertEqual(second.returncode, 0, err)

    def test_a_run_whose_workers_are_gone_can_be_stopped(self):
        self.config(ARITHMETIC)
        common = ["--run.deterministic=true", "--train.max_steps=60"]
        harness.temper("run", "config.toml", "--run.name=whole", "--rollout.workers=1", *common, cwd=self.folder, check=0)
        for ranks in (1, 2):
            name = f"on_{ranks}"
            away = [f"--train.ranks={ranks}", "--rollout.source=hub"]
            process = self.start(*common, *away, name=name)
            # Before the first evaluation, then in the middle of a step.
            harness.wait_until((self.run_path(name) / "hub.json").exists, "hub.json")
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, err)
            self.assertIn("stopped while waiting for", err)
            process = self.start(*common, *away, name=name)
            worker = subprocess.Popen([harness.TEMPER, "rollout", "config.toml", f"--run.name={name}", *common, *away], cwd=self.folder, stderr=subprocess.PIPE,
                                      text=True)
            harness.wait_until(lambda: self.steps(name) >= 2, "step 2")
            worker.kill()
            worker.communicate()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, err)
            self.assertIn("is taken when the run goes on", err)
            # On-policy nothing is owed to workers: it goes on without any.
            harness.temper("run", "config.toml", f"--run.name={name}", *common, f"--train.ranks={ranks}", cwd=self.folder, check=0)
            if ranks == 1:
                self.assertEqual(results(self.run_path(name)), results(self.run_path("whole")))
            self.assertEqual(harness.serials(self.run_path(name)), harness.serials(self.run_path("whole")))

    def test_a_hub_file_that_an_earlier_job_left_is_no_hub(self):
        self.config(ARITHMETIC)
        common = ["--rollout.source=hub", "--train.max_steps=400", "--checkpoint.local_every_steps=2"]
        process = self.start(*common)
        hub = self.run_path("workers") / "hub.json"
        harness.wait_until(hub.exists, "hub.json")
        process.kill()
        process.communicate()
        command = [harness.TEMPER, "rollout", "config.toml", "--run.name=workers", *common]
        here = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        self.assertIn("names none that runs", here.stderr.readline())  # its process is gone
        # Of another machine nobody can say whether the process lives: such a worker tries, and goes on to the next hub.
        hub.write_text(json.dumps(json.loads(hub.read_text()) | {"host": "elsewhere"}))
        there = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        self.assertIn("stage grpo, hub", there.stderr.readline())
        process = self.start(*common)
        harness.wait_until(lambda: self.steps() >= 3, "step 3")

        def both_work():
            status = json.loads(harness.temper("status", "runs/workers", "--json", cwd=self.folder, check=0).out)
            return status["status"].get("hub", {}).get("num_workers") == 2 and status
        status = harness.wait_until(both_work, "both workers at the new hub")
        self.assertEqual(status["status"]["starts"], 2)
        self.assertEqual(status["status"]["hub"]["epoch"], 2)
        for ended, code in ((process, 75), (here, 0), (there, 0)):
            ended.send_signal(signal.SIGTERM)
            _, err = ended.communicate(timeout=60)
            self.assertEqual(ended.returncode, code, err)

    def test_workers_that_cannot_work_end_the_run(self):
        self.config(ARITHMETIC)
        # Its own limit is no business of the hub's, so the worker starts, and fails at the first prompt.
        result = harness.temper("run", "config.toml", "--rollout.workers=2", "--rollout.kv_cache_memory=1", "--rollout.block_size=65536",
                                "--train.max_steps=2", cwd=self.folder)
        self.assert_error(result, 2, "rollout workers ended with exit code 2", "worker_*.log")
        self.assertIn("rollout.kv_cache_memory", self.log_of(0))

    def test_keys_are_made_once_and_kept(self):
        harness.temper("keygen", "keys", cwd=self.folder, check=0)
        self.assertEqual({path.name for path in (self.folder / "keys").iterdir()}, {"hub.key", "worker.key", "allowed_workers"})
        self.assert_error(harness.temper("keygen", "keys", cwd=self.folder), 3, "hub.key")

    def test_a_configuration_without_workers_has_none(self):
        self.config(ARITHMETIC)
        self.assert_error(harness.temper("rollout", "config.toml", cwd=self.folder), 2, "no stage takes rollout workers", "rollout.workers")


if __name__ == "__main__":
    harness.main()
