"""Bad input gets one clear sentence (what, where, values, fix) and the right exit code, and leaves nothing half-written."""
import json
import os
import pathlib
import shutil
import struct
import subprocess

import harness

TRAIN = harness.TINY + """
[train]
num_prompts_per_step = 4
max_steps = 3
"""


class BadInput(harness.Case):
    def run_config(self, text, *overrides):
        return harness.temper("run", self.config(text), *overrides, cwd=self.folder)

    def trained_model(self):
        harness.temper("run", self.config(TRAIN), cwd=self.folder, check=0)
        return self.folder / "runs" / "tiny" / "model"

    def test_configuration_errors_name_key_value_and_fix(self):
        self.assert_error(harness.temper("run", "nowhere.toml", cwd=self.folder), 3, "nowhere.toml")
        self.assert_error(self.run_config(TRAIN, "--algo.epsilon_high=0.3"), 2, "algo.epsilon_high", "algo.clip_ratio_high")
        self.assert_error(self.run_config(TRAIN, "--train.max_stps=3"), 2, "train.max_stps", "train.max_steps")
        self.assert_error(self.run_config(TRAIN, "--train.max_steps=many"), 2, "train.max_steps", "many")
        self.assert_error(self.run_config(TRAIN, "--optim.learning_rate=-1"), 2, "optim.learning_rate", "-1")
        self.assert_error(self.run_config(TRAIN, "--rollout.num_generations=1"), 2, "num_generations", "2")
        self.assert_error(self.run_config(TRAIN, "--rollout.temperature=0"), 2, "rollout.temperature")
        self.assert_error(self.run_config("[run\nname = 1"), 2, "config.toml", "line")
        several = self.run_config(TRAIN, "--train.max_stps=3", "--optim.learning_rate=-1")
        self.assert_error(several, 2, "train.max_stps", "optim.learning_rate")
        self.assertFalse((self.folder / "runs").exists())

    def test_folders_that_cannot_be_written_are_refused_at_the_start(self):
        self.config(TRAIN)
        # Below a file no folder can be made, not even by root.
        for setting in ("run.dir", "checkpoint.local_dir"):
            result = harness.temper("run", "config.toml", f"--{setting}=config.toml/below", cwd=self.folder)
            self.assert_error(result, 3, "config.toml/below", "the folder cannot be")
            self.assertNotIn("grpo 1/", result.err)

    def test_data_errors_name_file_and_line(self):
        base = TRAIN.replace('task = "copy"', 'path = "data.jsonl"') + '[reward]\nfunctions = ["exact"]\n'
        data = self.folder / "data.jsonl"
        self.assert_error(self.run_config(base), 3, "data.jsonl")
        good = '{"prompt": "a", "answer": "a"}\n'
        for bad, code, word in ((good + '{"prompt": ', 5, "data.jsonl:2"), (good + "\n" + good, 5, "data.jsonl:2"),
                                ("", 5, "data.jsonl"), (good + '{"question": "a"}\n', 5, "prompt")):
            data.write_text(bad)
            self.assert_error(self.run_config(base), code, "data.jsonl", word)

    def test_broken_models_name_file_and_tensor(self):
        model = self.trained_model()
        weights = model / "model.safetensors"
        whole = weights.read_bytes()
        (self.folder / "p.jsonl").write_text('{"prompt": "copy ab="}\n')

        def generate():
            return harness.temper("generate", "--model", "runs/tiny/model", "--prompts", "p.jsonl", "--out", "out.jsonl", cwd=self.folder)

        weights.write_bytes(whole[: len(whole) // 2])
        self.assert_error(generate(), 5, "model.safetensors")
        size = struct.unpack("<Q", whole[:8])[0]
        header = json.loads(whole[8 : 8 + size])
        for name, change in (("model.norm.weight", None), ("model.norm.weight", "reshape")):
            edited = dict(header)
            if change is None:
                edited["model.other.weight"] = edited.pop(name)
            else:
                edited[name] = dict(header[name], shape=[2, 32])
            text = json.dumps(edited).encode()
            text += b" " * (-len(text) % 8)
            weights.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
            self.assert_error(generate(), 5, name)
        weights.unlink()
        self.assert_error(generate(), 3, "model.safetensors")
        weights.write_bytes(whole)

        config = model / "config.json"
        text = config.read_text()
        config.write_text(text.replace("LlamaForCausalLM", "GPT9ForCausalLM").replace('"llama"', '"gpt9"'))
        self.assert_error(generate(), 5, "config.json", "gpt9", "llama")
        config.write_text(text)
        tokenizer = model / "tokenizer.json"
        text = tokenizer.read_text()
        tokenizer.write_text(text[: len(text) // 2])
        self.assert_error(generate(), 5, "tokenizer.json")
        tokenizer.write_text(text)
        self.assertFalse((self.folder / "out.jsonl").exists())
        self.assertEqual(generate().code, 0)

    def test_generate_refuses_what_cannot_be(self):
        self.trained_model()
        (self.folder / "p.jsonl").write_text('{"prompt": "copy ab="}\n')
        base = ("generate", "--model", "runs/tiny/model", "--prompts", "p.jsonl", "--out", "out.jsonl")
        self.assert_error(harness.temper(*base, "--max-new-tokens", "0", cwd=self.folder), 2, "max-new-tokens")
        self.assert_error(harness.temper(*base, "--top-p", "1.5", cwd=self.folder), 2, "top_p", "1.5")
        self.assert_error(harness.temper(*base, "--colour", "red", cwd=self.folder), 2, "colour")
        (self.folder / "p.jsonl").write_text('{"prompt": "ok"}\n{"prompt": "' + "x" * 500 + '"}\n')
        self.assert_error(harness.temper(*base, cwd=self.folder), 2, "p.jsonl:2", "500", "64")
        (self.folder / "p.jsonl").write_text('{"prompt": "ok"}\nnonsense\n')
        self.assert_error(harness.temper(*base, cwd=self.folder), 5, "p.jsonl:2")
        self.assertFalse((self.folder / "out.jsonl").exists())

    def test_a_wrong_subcommand_names_the_nearest(self):
        self.assert_error(harness.temper("runn", cwd=self.folder), 2, "runn", "run")
        self.assertEqual(harness.temper("--help", cwd=self.folder, check=0).code, 0)
        self.assertIn("libtorch", harness.temper("--version", cwd=self.folder, check=0).out)


# A file system of a few megabytes needs root and mount(8) inside a namespace of its own; where the system forbids that, the
# fault-injecting file system of tests/checkpoint covers the same paths call by call.
def can_mount():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


class FullDisk(harness.Case):
    def on_small_disk(self, megabytes, arguments):
        """Runs temper with its run directory on a tmpfs of that size; standard error and exit code."""
        script = (f"mkdir -p small && mount -t tmpfs -o size={megabytes}m tmpfs small && "
                  f"{harness.TEMPER} run config.toml --run.dir=small {arguments}; code=$?; "
                  "cp small/tiny/metrics.jsonl . 2>/dev/null; ls -R small > listing.txt; exit $code")
        process = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=self.folder, capture_output=True, text=True, timeout=300)
        return harness.Result(process)

    def test_failed_saves_are_counted_and_three_in_a_row_end_the_run(self):
        self.assertTrue(can_mount(), "this test needs root and mount namespaces")
        self.config(TRAIN)
        # The state of this model is about 1 MB a checkpoint.
        result = self.on_small_disk(1, "--train.max_steps=12 --checkpoint.local_every_steps=2")
        self.assertEqual(result.code, 3, result.err)
        self.assertIn("1 of 3 in a row", result.err)
        self.assertIn("No space left", result.err)
        records = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        # Training goes on while the state is written, until the third failure: of the saves after steps 2, 4 and 6.
        self.assertIn(records[-1]["step"], (6, 7, 8))
        self.assertEqual(records[5]["checkpoint/failed_saves"], 1)  # known at the latest when the next save begins
        self.assertNotIn("model.safetensors", (self.folder / "listing.txt").read_text())


if __name__ == "__main__":
    harness.main()
