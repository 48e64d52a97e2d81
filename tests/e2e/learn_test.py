"""A small model learns by SFT and then by GRPO; the run directory holds what docs/ promises."""
import json

import harness

CONFIG = harness.TINY + """
[[stage]]
name = "sft"
algo.preset = "sft"
train = {num_prompts_per_step = 64, max_steps = 60}
optim = {learning_rate = 3e-3}
[[stage]]
name = "grpo"
algo = {preset = "grpo", kl_coef = 0.001}
train = {num_prompts_per_step = 16, max_steps = 40}
optim = {learning_rate = 1e-3}
"""


class Learn(harness.Case):
    def test_sft_then_grpo_learn_and_leave_a_whole_run_directory(self):
        harness.temper("run", self.config(CONFIG), cwd=self.folder, check=0)
        run = self.folder / "runs" / "tiny"
        records = harness.metrics(run)
        sft = [record for record in records if record["stage"] == "sft"]
        grpo = [record for record in records if record["stage"] == "grpo"]
        self.assertEqual([record["step"] for record in sft], list(range(61)))
        self.assertEqual([record["step"] for record in grpo], list(range(41)))
        self.assertNotIn("loss", sft[0])  # step 0: evaluation alone
        self.assertLess(sft[-1]["loss"], 0.7 * sft[1]["loss"])
        mean = lambda part: sum(record["reward"] for record in part) / len(part)
        self.assertGreater(mean(grpo[-10:]), mean(grpo[1:11]) + 0.05)
        last = grpo[-1]
        for name in ("kl", "entropy", "reward_std", "frac_reward_zero_std", "grad_norm", "learning_rate", "num_tokens",
                     "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean",
                     "sampling/sampling_logp_difference/mean", "training/off_policy/trajectory_staleness/max", "timing_s/step",
                     "timing_s/gen", "timing_s/reward", "timing_s/ref", "perf/throughput", "perf/mfu", "eval/copy/accuracy",
                     "rewards/task/mean"):
            self.assertIn(name, last)
        self.assertGreater(last["kl"], 0)
        for record in grpo[1:]:
            self.assertLessEqual(record["sampling/sampling_logp_difference/mean"], 1e-5)
            self.assertEqual(record["training/off_policy/trajectory_staleness/max"], 0)
        self.assertEqual([record["policy_version"] for record in grpo], list(range(60, 101)))
        completions = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
        self.assertIn("task", completions[-1]["completions"][0]["rewards"])
        self.assertTrue((run / "report.html").read_text().startswith("<!"))
        self.assertFalse((run / "stages").exists())
        self.assertEqual({path.name for path in (run / "model").iterdir()} & {"config.json", "model.safetensors", "tokenizer.json"},
                         {"config.json", "model.safetensors", "tokenizer.json"})

        before = (run / "metrics.jsonl").read_bytes()
        again = harness.temper("run", "config.toml", cwd=self.folder, check=0)
        self.assertIn("finished", again.err)
        self.assertEqual((run / "metrics.jsonl").read_bytes(), before)

        judged = harness.temper("eval", "config.toml", cwd=self.folder, check=0)
        self.assertEqual(json.loads(judged.out)["accuracy"], last["eval/copy/accuracy"])

        (self.folder / "prompts.jsonl").write_text('{"prompt": "copy abcd="}\n{"prompt": "copy zz="}\n')
        for _ in range(2):
            harness.temper("generate", "--model", run / "model", "--prompts", "prompts.jsonl", "--out", "out.jsonl", "--seed", "3",
                           "--num-completions", "2", cwd=self.folder, check=0)
            lines = [json.loads(line) for line in (self.folder / "out.jsonl").read_text().splitlines()]
            self.assertEqual([line["index"] for line in lines], [0, 1])
            first = lines[0]["completions"][0]
            self.assertEqual(len(first["token_ids"]), len(first["logprobs"]))
            (self.folder / "in.jsonl").write_text(json.dumps({"token_ids": lines[0]["prompt_token_ids"] + first["token_ids"]}) + "\n")
        harness.temper("score", "--model", run / "model", "--input", "in.jsonl", "--out", "scores.jsonl", cwd=self.folder, check=0)
        scored = json.loads((self.folder / "scores.jsonl").read_text())["logprobs"]
        self.assertIsNone(scored[0])
        for generated, again in zip(first["logprobs"], scored[-len(first["logprobs"]):]):
            self.assertAlmostEqual(generated, again, delta=2e-5)

    def test_a_dry_run_prints_configuration_and_memory_and_makes_nothing(self):
        result = harness.temper("run", self.config(CONFIG), "--dry-run", "--stage.grpo.algo.kl_coef=0.5", cwd=self.folder, check=0)
        self.assertIn("kl_coef = 0.5", result.out)
        self.assertIn("AdamW moments", result.out)
        self.assertIn("parameters x 8 bytes", result.out)
        self.assertFalse((self.folder / "runs").exists())


if __name__ == "__main__":
    harness.main()
