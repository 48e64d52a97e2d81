"""Trainer ranks as Slurm jobs, on the cluster that scripts/slurm/mini_cluster.sh up starts: what a cluster does to a job changes no bit of the run."""
import json
import os
import pathlib
import subprocess
import tempfile
import time

import harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "slurm"
# Nodes share no /tmp.
SHARED = harness.TEMPER.parent / "slurm_test"
SHARED.mkdir(exist_ok=True)
tempfile.tempdir = str(SHARED)

GRPO = harness.sft_then_grpo(150)
ENVIRONMENT = dict(os.environ, TEMPER=str(harness.TEMPER), OMP_NUM_THREADS="1", TEMPER_MAX_RESTARTS="1")
ENVIRONMENT.pop("SLURM_JOB_ID", None)


def command(*arguments, check=True):
    result = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    if check and result.returncode != 0:
        raise AssertionError(f"{arguments}: exit code {result.returncode}\n{result.stderr}")
    return result.stdout.strip()


class Slurm(harness.Case):
    def setUp(self):
        super().setUp()
        self.config(GRPO)
        self.addCleanup(self.end_jobs)

    def end_jobs(self):
        command("scancel", "--user", str(os.geteuid()), check=False)
        for node in ("n1", "n2", "n3", "n4"):
            command(SCRIPTS / "mini_cluster.sh", "start", node)
        harness.wait_until(lambda: not command("squeue", "--noheader", "--me"), "the end of all jobs")
        command(SCRIPTS / "mini_cluster.sh", "up")

    def submit(self, *options, script="train.sbatch", arguments=("config.toml",)):
        return command("sbatch", "--parsable", f"--chdir={self.folder}", *options, SCRIPTS / script, *arguments)

    def state(self, job):
        fields = command("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for_end(self, job, seconds=300):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.state(job)
            if state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"):
                return state
            time.sleep(0.5)
        self.fail(f"job {job} has not ended: {self.state(job)}\n{self.log(job)}")

    def wait_for_step(self, name, step, seconds=120):
        path = self.folder / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if path.exists() and any(f'"stage":"grpo","step":{step},' in line.replace(": ", ":").replace(", ", ",") for line in path.read_text().splitlines()):
                return
            time.sleep(0.05)
        self.fail(f"{name} did not reach step {step}")

    def log(self, job):
        path = self.folder / f"temper-{job}.log"
        return path.read_text() if path.exists() else "no log"

    def assert_same_run(self, one, other):
        runs = self.folder / "runs"
        self.assertEqual(harness.without_times(harness.metrics(runs / one)), harness.without_times(harness.metrics(runs / other)))
        self.assertEqual(harness.tensors(runs / one / "model" / "model.safetensors"), harness.tensors(runs / other / "model" / "model.safetensors"))

    def undisturbed(self):
        harness.temper("run", "config.toml", "--run.name=whole", "--train.ranks=2", cwd=self.folder, check=0)

    def test_a_job_on_two_nodes_is_the_run_of_two_local_ranks(self):
        self.undisturbed()
        job = self.submit("--nodes=2", "--ntasks-per-node=1", arguments=("config.toml", "--run.name=job"))
        state = self.wait_for_end(job)
        self.assertEqual(state["JobState"], "COMPLETED", self.log(job))
        self.assert_same_run("whole", "job")

    def test_a_job_that_is_told_to_stop_saves_is_requeued_and_goes_on(self):
        self.undisturbed()
        job = self.submit("--nodes=2", "--ntasks-per-node=1", arguments=("config.toml", "--run.name=job"))
        self.wait_for_step("job", 20)
        command("scancel", "--signal=USR1", "--batch", job)  # what Slurm does --signal seconds before the time is over
        state = self.wait_for_end(job)
        self.assertEqual(state["JobState"], "COMPLETED", self.log(job))
        self.assertEqual(state["Restarts"], "1", self.log(job))
        self.assertIn("stopped (exit 75), 75 is with a checkpoint: requeued", self.log(job))
        self.assertIn("resumed at step", self.log(job))
        self.assert_same_run("whole", "job")

    def test_a_job_survives_its_node(self):
        self.undisturbed()
        job = self.submit("--nodes=2", "--ntasks-per-node=1", arguments=("config.toml", "--run.name=job"))
        self.wait_for_step("job", 20)
        nodes = command("scontrol", "show", "hostnames", self.state(job)["NodeList"]).split()
        self.assertEqual(len(nodes), 2)
        command(SCRIPTS / "mini_cluster.sh", "kill", nodes[1])
        state = self.wait_for_end(job)
        self.assertEqual(state["JobState"], "COMPLETED", self.log(job))
        self.assertIn("resumed at step", self.log(job))
        self.assert_same_run("whole", "job")

    def test_a_run_goes_on_with_another_number_of_nodes(self):
        first = self.submit("--nodes=4", "--ntasks-per-node=1", arguments=("config.toml", "--run.name=job"))
        self.wait_for_step("job", 10)
        command("scancel", first)
        self.assertEqual(self.wait_for_end(first)["JobState"], "CANCELLED", self.log(first))
        second = self.submit("--nodes=2", "--ntasks-per-node=1", arguments=("config.toml", "--run.name=job"))
        state = self.wait_for_end(second)
        self.assertEqual(state["JobState"], "COMPLETED", self.log(second))
        self.assertIn("resumed at step", self.log(second))
        steps = [record["step"] for record in harness.metrics(self.folder / "runs" / "job") if record["stage"] == "grpo" and "loss" in record]
        self.assertEqual(steps, list(range(1, 151)))

    def test_workers_beside_the_ranks_and_as_jobs_of_their_own(self):
        arguments = ("config.toml", "--run.name=job", "--run.deterministic=false", "--rollout.source=hub", "--async.max_staleness=1")
        job = self.submit("--nodes=2", "--ntasks-per-node=1", "--export=ALL,TEMPER_WORKER_NODES=1", arguments=arguments)
        more = self.submit("--nodes=1", "--ntasks-per-node=1", script="rollout.sbatch", arguments=arguments)
        self.assertEqual(self.wait_for_end(job)["JobState"], "COMPLETED", self.log(job))
        self.assertEqual(self.wait_for_end(more)["JobState"], "COMPLETED", self.log(more))
        self.assertRegex(self.log(job), r"rollout worker n\d/0: stage grpo")
        self.assertIn(f"rollout worker {more}/0: stage grpo", self.log(more))
        steps = [record["step"] for record in harness.metrics(self.folder / "runs" / "job") if record["stage"] == "grpo" and "loss" in record]
        self.assertEqual(steps, list(range(1, 151)))

    def test_a_requeued_job_with_workers_goes_on_with_two_nodes_and_with_three(self):
        arguments = ("config.toml", "--run.name=job", "--run.deterministic=false", "--rollout.source=hub", "--async.max_staleness=1", "--log.completions=1000")
        job = self.submit("--nodes=4", "--ntasks-per-node=1", arguments=arguments)
        workers = self.submit("--nodes=1", "--ntasks-per-node=1", script="rollout.sbatch", arguments=arguments)
        for step, nodes in ((10, 2), (50, 3)):
            self.wait_for_step("job", step)
            command("scancel", "--signal=USR1", "--batch", job)
            harness.wait_until(lambda: self.state(job)["JobState"] == "PENDING", "the job in the queue again")
            command("scontrol", "update", f"JobId={job}", f"NumNodes={nodes}", f"NumTasks={nodes}")
        self.assertEqual(self.wait_for_end(job, 600)["JobState"], "COMPLETED", self.log(job))
        self.assertEqual(self.wait_for_end(workers)["JobState"], "COMPLETED", self.log(workers))
        for start, nodes in enumerate((4, 2, 3), 1):
            self.assertIn(f"job {job}, start {start}, {nodes} nodes", self.log(job))
        status = json.loads(harness.temper("status", "runs/job", "--json", cwd=self.folder, check=0).out)
        self.assertEqual((status["status"]["starts"], status["status"]["ranks"]), (3, 3))
        steps = [record["step"] for record in harness.metrics(self.folder / "runs" / "job") if record["stage"] == "grpo" and "loss" in record]
        self.assertEqual(steps, list(range(1, 151)))
        serials = harness.serials(self.folder / "runs" / "job")
        self.assertEqual((len(serials), len(set(serials))), (8 * 150, 8 * 150))  # each prompt once

    def test_a_pipeline_of_jobs_hands_the_model_on(self):
        self.config(GRPO.split("[[stage]]")[0].replace('name = "tiny"', 'name = "first"') + "[algo]\npreset = \"sft\"\n[train]\nnum_prompts_per_step = 16\nmax_steps = 20\n"
                    "[optim]\nlearning_rate = 3e-3\n", "first.toml")
        second = GRPO.split("[[stage]]")[0].replace('name = "tiny"', 'name = "second"')
        second = "\n".join(line if not line.startswith("init =") else 'path = "runs/first/model"' for line in second.splitlines())
        self.config(second + "\n[algo]\npreset = \"grpo\"\nkl_coef = 0.02\n[train]\nnum_prompts_per_step = 8\nmax_steps = 10\n[optim]\nlearning_rate = 5e-4\n", "second.toml")
        jobs = subprocess.run([SCRIPTS / "pipeline.sh", "--nodes=1", "--ntasks-per-node=2", "--", "first.toml", "second.toml"], cwd=self.folder, env=ENVIRONMENT,
                              capture_output=True, text=True)
        self.assertEqual(jobs.returncode, 0, jobs.stderr)
        for job in jobs.stdout.split():
            self.assertEqual(self.wait_for_end(job)["JobState"], "COMPLETED", self.log(job))
        self.assertTrue((self.folder / "runs" / "second" / "model" / "model.safetensors").exists())

    def test_a_second_job_with_the_same_run_directory_is_told_of_the_first(self):
        first = self.submit("--nodes=1", "--ntasks-per-node=2", arguments=("config.toml", "--run.name=job"))
        self.wait_for_step("job", 5)
        second = self.submit("--nodes=1", "--ntasks-per-node=2", arguments=("config.toml", "--run.name=job"))
        self.assertEqual(self.wait_for_end(second)["JobState"], "FAILED", self.log(second))
        self.assertIn(f"of Slurm job {first}. Wait for it", self.log(second))
        status = harness.temper("status", "runs/job", cwd=self.folder, check=0).out
        self.assertIn(f"of Slurm job {first}, 2 ranks", status)
        command("scancel", first)
        self.assertEqual(self.wait_for_end(first)["JobState"], "CANCELLED", self.log(first))
        self.assertIn("job: stopped", harness.temper("status", "runs/job", cwd=self.folder, check=0).out)

    def test_what_cannot_run_is_said_at_once(self):
        outside = subprocess.run([SCRIPTS / "train.sbatch", "config.toml"], cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True)
        self.assertEqual(outside.returncode, 2)
        self.assertIn("not inside a Slurm job", outside.stderr)
        self.config(GRPO.replace("num_generations = 4", "num_generations = 1"), "wrong.toml")
        for arguments, words in ((("none.toml",), "none.toml: no such file"), (("wrong.toml",), "the configuration is refused (exit 2): not started again")):
            job = self.submit("--nodes=1", arguments=arguments)
            self.assertEqual(self.wait_for_end(job)["JobState"], "FAILED")
            self.assertIn(words, self.log(job))


if __name__ == "__main__":
    harness.main()
