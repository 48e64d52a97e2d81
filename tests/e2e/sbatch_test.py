"""scripts/slurm/train.sbatch without a cluster: srun and scontrol are stand-ins that note their calls and do as the test says."""
import os
import pathlib
import signal
import subprocess
import time

import harness

SBATCH = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "slurm" / "train.sbatch"

SRUN = """#!/bin/bash
echo "srun $*" >> calls
case "$*" in
  *--mpi=list*) cat mpi_types; exit 0 ;;
  *" test "*) [ ! -e unshared ]; exit ;;
esac
if [ -e wait_for_signal ] && [[ "$*" == *--mpi=pmix* ]]; then
  trap 'echo "step: USR1" >> calls; exit 75' USR1
  touch started
  for _ in $(seq 600); do sleep 0.1; done
fi
# The ranks' step would be over before that of the workers, which is started beside it, has begun.
case "$*" in *--mpi=pmix*) [ -z "$TEMPER_WORKER_NODES" ] || for _ in $(seq 600); do grep -q -- --no-kill calls && break; sleep 0.05; done ;; esac
case "$*" in *--no-kill*) while [ -e wait_for_signal ] && [ ! -e started ]; do sleep 0.01; done ;; esac
code=$(head -1 codes); sed -i 1d codes
[ -e last_words ] && cat last_words >&2
if [ -e linger ]; then
  printf 'half a' >&2
  for _ in $(seq 600); do [ ! -e linger ] || sleep 0.1; done
  echo ' line' >&2
fi
exit "$code"
"""


SCONTROL = """#!/bin/bash
[ "$1" = show ] && { printf 'n1\\nn2\\n'; exit; }
echo "scontrol $*" >> calls
"""

# squeue: the steps of the job; sinfo: the nodes that are down.
OTHERS = {"squeue": "#!/bin/bash\nprintf '7.batch batch\\n7.3 bash\\n7.4 temper\\n'\n", "sinfo": "#!/bin/bash\ncat lost_nodes 2>/dev/null\n",
          "scancel": '#!/bin/bash\necho "scancel $*" >> calls\n'}


class Sbatch(harness.Case):
    def setUp(self):
        super().setUp()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), *OTHERS.items(), ("temper", "#!/bin/bash\n")):
            self.config(text, name)
            (self.folder / name).chmod(0o755)
        self.config("", "config.toml")
        self.config("MPI plugin types are...\n\tnone\n\tpmix\n", "mpi_types")
        self.environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}

    def start(self, codes=(0,), **environment):
        self.config("".join(f"{code}\n" for code in codes), "codes")
        return subprocess.Popen(["bash", SBATCH, "config.toml", "--run.name=a"], cwd=self.folder, env={**self.environment, **environment},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run_job(self, codes=(0,), **environment):
        process = self.start(codes, **environment)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def calls(self, word):
        path = self.folder / "calls"
        return [line for line in path.read_text().splitlines() if word in line] if path.exists() else []

    def test_a_job_that_finishes(self):
        code, out = self.run_job()
        self.assertEqual(code, 0, out)
        self.assertIn("finished", out)
        self.assertEqual(len(self.calls("--mpi=pmix")), 1)
        self.assertIn("temper train config.toml --run.name=a", self.calls("--mpi=pmix")[0])

    def test_workers_get_nodes_and_a_step_of_their_own(self):
        self.assertIn("TEMPER_WORKER_NODES=2 of 2 nodes: the ranks need one at least", self.refused(TEMPER_WORKER_NODES="2"))
        code, out = self.run_job(codes=(0, 0), TEMPER_WORKER_NODES="1", TEMPER_WORKERS_PER_NODE="3")
        self.assertEqual(code, 0, out)
        ranks = self.calls("--mpi=pmix")
        self.assertEqual(len(ranks), 1)
        self.assertIn("--nodes=1 --nodelist=n1 --ntasks=1 ", ranks[0])
        self.assertRegex(ranks[0], r"temper train config.toml --run.name=a --async.bind=\d+\.\d+\.\d+\.\d+$")
        workers = [line for line in self.calls("srun") if "--nodelist=n2" in line]
        self.assertEqual(len(workers), 1)
        self.assertIn("--no-kill --kill-on-bad-exit=0 --nodes=1 --nodelist=n2 --ntasks=3 --ntasks-per-node=3 --overcommit bash -c", workers[0])

    def test_ranks_whose_workers_cannot_start_are_stopped(self):
        (self.folder / "wait_for_signal").touch()
        code, out = self.run_job(codes=(1,), TEMPER_WORKER_NODES="1", TEMPER_MAX_RESTARTS="0")
        self.assertEqual(code, 4, out)
        self.assertIn("the step of the rollout workers ended with exit 1", out)
        self.assertIn("no rollout workers (see above): the ranks were stopped", out)
        self.assertEqual(self.calls("step: "), ["step: USR1"])
        (self.folder / "started").unlink()
        code, out = self.run_job(codes=(5,), TEMPER_WORKER_NODES="1")  # which would come again
        self.assertEqual(code, 4, out)
        self.assertEqual(out.count("the step of the rollout workers ended"), 1)
        (self.folder / "started").unlink()
        self.config("n2\n", "lost_nodes")
        code, out = self.run_job(codes=(1,), TEMPER_WORKER_NODES="1", TEMPER_MAX_RESTARTS="0")
        self.assertEqual(code, 4, out)
        self.assertIn("a node of theirs is lost: requeued", out)
        self.assertEqual(len(self.calls("scontrol requeue 7")), 1)

    def test_workers_that_have_worked_may_end(self):
        code, out = self.run_job(codes=(0, 0), TEMPER_WORKER_NODES="1")
        self.assertEqual(code, 0, out)
        self.config("1\n", "lost_nodes")
        (self.folder / "wait_for_signal").touch()
        process = self.start(codes=(2,), TEMPER_WORKER_NODES="1", TEMPER_WORKERS_LAST="0")
        harness.wait_until(lambda: not (self.folder / "codes").read_text(), "the end of the workers")
        time.sleep(0.3)
        self.assertIsNone(process.poll())  # the ranks go on
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, out)

    def test_what_cannot_run_is_said_before_anything_starts(self):
        self.assertIn("1 tasks on 2 nodes leave some idle: give --ntasks-per-node", self.refused(SLURM_NTASKS="1"))
        self.config("MPI plugin types are...\n\tnone\n", "mpi_types")
        self.assertIn("this Slurm has no PMIx", self.refused())
        self.config("MPI plugin types are...\n\tpmix\n", "mpi_types")
        self.config("", "unshared")
        self.assertIn("is not there on every node", self.refused())
        self.assertIn("no program temper in PATH", self.refused(TEMPER="none"))
        (self.folder / "config.toml").unlink()
        self.assertIn("config.toml: no such file", self.refused())
        del self.environment["SLURM_JOB_ID"]
        self.assertIn("not inside a Slurm job", self.refused())

    def refused(self, **environment):
        code, out = self.run_job(**environment)
        self.assertEqual(code, 2, out)
        self.assertEqual(self.calls("--mpi=pmix"), [])
        self.assertEqual(out.count("error:"), 1, out)
        return out

    def test_a_lost_rank_starts_the_step_again_as_often_as_allowed(self):
        code, out = self.run_job(codes=(4, 137, 0))
        self.assertEqual(code, 0, out)
        self.assertEqual(len(self.calls("--mpi=pmix")), 3)
        (self.folder / "calls").unlink()
        code, out = self.run_job(codes=(4, 4, 4), TEMPER_MAX_RESTARTS="1")
        self.assertEqual(code, 4, out)
        self.assertEqual(len(self.calls("--mpi=pmix")), 2)

    def test_ranks_that_wait_for_a_killed_one_are_ended_at_once(self):
        self.config("srun: error: n2: task 1: Killed\nrank 0: error: task 1: gone\n", "last_words")
        code, out = self.run_job(codes=(137, 0))
        self.assertEqual(code, 0, out)
        self.assertIn("n2: task 1: Killed", out)
        harness.wait_until(lambda: len(self.calls("scancel")) == 2, "scancel, once a start")
        self.assertEqual(self.calls("scancel"), ["scancel --signal=KILL 7.4"] * 2)
        (self.folder / "calls").unlink()
        self.config("srun: error: n2: task 1: Exited with exit code 2\n", "last_words")
        self.assertEqual(self.run_job(codes=(2,))[0], 2)
        self.assertEqual(self.calls("scancel"), [])  # the others had half a minute, and took less
        harness.wait_until(lambda: not harness.working_in(self.folder), "the end of all that the job started: it could kill a later step of the same number",
                           seconds=15)

    def test_a_rank_that_ended_gives_the_others_time_to_end(self):
        self.config("srun: error: n2: task 1: Exited with exit code 4\n", "last_words")
        (self.folder / "linger").touch()
        start = time.monotonic()
        process = self.start(codes=(4,), TEMPER_MAX_RESTARTS="0", TEMPER_KILL_WAIT="3")
        harness.wait_until(lambda: self.calls("scancel"), "scancel")
        self.assertGreaterEqual(time.monotonic() - start, 2)  # it counts in whole seconds
        (self.folder / "linger").unlink()
        out, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 4, out)
        self.assertEqual(self.calls("scancel"), ["scancel --signal=KILL 7.4"])
        self.assertIn("half a line\n", out)

    def test_a_job_that_lost_a_node_requeues_itself(self):
        self.config("n2\n", "lost_nodes")
        code, out = self.run_job(codes=(137, 0))
        self.assertEqual(code, 137, out)
        self.assertIn("and a node is lost: requeued", out)
        self.assertEqual(len(self.calls("--mpi=pmix")), 1)
        self.assertEqual(len(self.calls("scontrol requeue 7")), 1)

    def test_a_requeued_job_takes_the_nodes_it_has(self):
        code, out = self.run_job(SLURM_NTASKS="4", SLURM_NTASKS_PER_NODE="1")  # of four nodes, when it was submitted
        self.assertEqual(code, 0, out)
        self.assertIn("--nodes=2 --ntasks=2 ", self.calls("--mpi=pmix")[0])

    def test_what_starting_again_does_not_mend_is_not_started_again(self):
        for expected in (2, 3, 5, 6):
            code, out = self.run_job(codes=(expected, 0))
            self.assertEqual(code, expected, out)
            self.assertIn("not started again", out)
            self.assertEqual(len(self.calls("--mpi=pmix")), 1)
            (self.folder / "calls").unlink()

    def test_the_end_of_the_time_requeues_and_a_cancel_does_not(self):
        self.config("", "wait_for_signal")
        for sent, requeues in ((signal.SIGUSR1, 1), (signal.SIGTERM, 0)):
            process = self.start()
            deadline = time.monotonic() + 30
            while not (self.folder / "started").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(sent)
            out, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, out)
            self.assertEqual(len(self.calls("step: USR1")), 1, out)
            self.assertEqual(len(self.calls("scontrol requeue 7")), requeues, out)
            (self.folder / "calls").unlink()
            (self.folder / "started").unlink()


if __name__ == "__main__":
    harness.main()
