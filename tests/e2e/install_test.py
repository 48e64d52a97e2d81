"""What cmake --install puts somewhere is whole: the program runs from there, with LibTorch from its own folder, and nothing else of the checkout."""
import pathlib
import subprocess

import harness

BUILD = harness.TEMPER.parent
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


class Install(harness.Case):
    def test_the_program_runs_from_where_it_was_put(self):
        prefix = self.folder / "prefix"
        subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, capture_output=True, timeout=300)
        temper = prefix / "bin" / "temper"
        version = subprocess.run([temper, "--version"], env={}, capture_output=True, text=True, timeout=60)
        self.assertEqual(version.returncode, 0, version.stderr)
        self.assertRegex(version.stdout, r"^temper \d+\.\d+\.\d+ \(([0-9a-f]{12}(\+changes)?|unknown commit)\)\n")
        self.assertEqual(version.stdout, harness.temper("--version", cwd=self.folder, check=0).out)
        libraries = subprocess.run(["ldd", temper], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True).stdout
        self.assertIn(f"{prefix}/bin/../lib/temper/libtorch_cpu.so", libraries)
        self.assertNotIn("not found", libraries)
        self.assertNotIn(str(CHECKOUT), libraries)

        share = prefix / "share" / "temper"
        for config in sorted(path.name for path in (CHECKOUT / "configs").glob("*.toml")):
            self.assertTrue((share / "configs" / config).exists(), config)
        self.assertTrue((share / "slurm" / "train.sbatch").stat().st_mode & 0o100)
        self.assertTrue((share / "kubernetes" / "trainer.yaml").exists())
        self.assertTrue((prefix / "share" / "doc" / "temper" / "operations.md").exists())
        self.config(harness.TINY + '[algo]\npreset = "sft"\n[train]\nmax_steps = 2\n')
        run = subprocess.run([temper, "run", "config.toml"], cwd=self.folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120)
        self.assertEqual(run.returncode, 0, run.stderr)


if __name__ == "__main__":
    harness.main()
