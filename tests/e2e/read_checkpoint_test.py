"""Checkpoints as other people's programs see them: by the reader that docs/checkpoint_format.md prints, by h5py on the shards and on
global.h5. The golden one, and one that two ranks of a run wrote. Needs numpy, h5py and xxhash (scripts/setup.sh --python)."""
import pathlib
import subprocess
import sys

import harness

READER = pathlib.Path(__file__).resolve().parents[1] / "support" / "read_checkpoint.py"


class ReadCheckpoint(harness.Case):
    def agree(self, *arguments):
        reader = subprocess.run([sys.executable, "-B", READER, *arguments], capture_output=True, text=True, timeout=120)
        self.assertEqual(reader.returncode, 0, reader.stdout + reader.stderr)
        self.assertIn("tensors agree", reader.stdout)

    def test_the_golden_one(self):
        self.agree()

    def test_one_that_two_ranks_wrote(self):
        self.config(harness.TINY + """
[train]
num_prompts_per_step = 4
max_steps = 2
ranks = 2
shard = "full"
""")
        harness.temper("run", "config.toml", cwd=self.folder, check=0)
        checkpoint = self.folder / "runs" / "tiny" / "checkpoints" / "grpo" / "step_000002"
        self.assertTrue((checkpoint / "shard_00001.h5").exists())
        self.agree(checkpoint)
        harness.temper("checkpoint", "reshard", checkpoint, "--out=again", "--shards=3", cwd=self.folder, check=0)
        self.agree(self.folder / "again" / "step_000002")


if __name__ == "__main__":
    harness.main()
