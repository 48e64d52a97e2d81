"""Every kind of stage in one pipeline: each learns what it is for, goes on after a kill with the same bits, and what cannot
work is refused before anything is loaded."""
import json
import pathlib
import signal
import subprocess
import time

import harness

SMALL = harness.TINY.replace("[eval]", "generated = {num_items = 2, num_worked = 2000}\n[eval]").replace(
    "num_generations = 8\nmax_completion_length = 8", "num_generations = 4\nmax_completion_length = 4")

SFT = """
[[stage]]
name = "sft"
algo.preset = "sft"
train = {num_prompts_per_step = 32, max_steps = 60}
optim = {learning_rate = 3e-3}
"""
REWARD_MODEL = """
[[stage]]
name = "reward_model"
algo.preset = "reward_model"
train = {num_prompts_per_step = 64, max_steps = 100}
optim = {learning_rate = 2e-3}
eval = {every_steps = 50}
"""
PPO = """
[[stage]]
name = "ppo"
algo = {preset = "ppo", kl_coef = 0.02, num_minibatches = 2, num_epochs = 2}
reward = {functions = ["task", "model"], weights = [0.0, 1.0], model = "stage:reward_model"}
critic = {path = "stage:reward_model", learning_rate = 1e-3}
train = {num_prompts_per_step = 16, max_steps = 15}
optim = {learning_rate = 5e-4}
"""
REST = """
[[stage]]
name = "dpo"
model.path = "stage:sft"
algo = {preset = "dpo", dpo_beta = 0.1}
train = {num_prompts_per_step = 32, max_steps = 30}
optim = {learning_rate = 5e-4}
[[stage]]
name = "distill"
algo.preset = "distill"
model = {path = "stage:sft", teacher = "stage:ppo"}
train = {num_prompts_per_step = 16, max_steps = 15}
optim = {learning_rate = 5e-4}
[[stage]]
name = "gkd"
algo.preset = "gkd"
model = {path = "stage:sft", teacher = "stage:ppo"}
rollout.teacher_share = 0.5
train = {num_prompts_per_step = 16, max_steps = 15}
optim = {learning_rate = 5e-4}
"""
SHORT = SFT.replace("max_steps = 60", "max_steps = 4")


def mean(records, name):
    values = [record[name] for record in records]
    return sum(values) / len(values)


class Pipeline(harness.Case):
    """sft → reward_model → ppo, sft → dpo, sft and ppo's model as teacher → distill, gkd: one run, looked at stage by stage."""

    @classmethod
    def setUpClass(cls):
        folder = harness.temporary_folder(cls.addClassCleanup)
        (folder / "config.toml").write_text(SMALL + SFT + REWARD_MODEL + PPO + REST)
        cls.err = harness.temper("run", "config.toml", cwd=folder, check=0).err
        cls.run_path = folder / "runs" / "tiny"
        cls.records = harness.metrics(cls.run_path)

    def stage(self, name):
        return [record for record in self.records if record["stage"] == name and record["step"] > 0]

    def assert_rises(self, records, name, by):
        fifth = max(2, len(records) // 5)
        self.assertGreater(mean(records[-fifth:], name), mean(records[:fifth], name) + by, name)

    def test_the_reward_model_prefers_right_answers_it_has_not_seen(self):
        held_out = [record for record in self.records if record["stage"] == "reward_model" and "eval/copy/pair_accuracy" in record]
        self.assertEqual([record["step"] for record in held_out], [0, 50, 100])
        self.assertLess(held_out[0]["eval/copy/pair_accuracy"], 0.75)
        self.assertGreater(held_out[-1]["eval/copy/pair_accuracy"], held_out[0]["eval/copy/pair_accuracy"] + 0.1)
        self.assertLess(held_out[-1]["eval/copy/loss"], held_out[0]["eval/copy/loss"])
        self.assert_rises(self.stage("reward_model"), "rewards/accuracies", 0.1)
        self.assertNotIn("eval/copy/accuracy", held_out[-1])  # it generates nothing

    def test_ppo_raises_the_reward_models_score_with_a_critic_of_its_own(self):
        ppo = self.stage("ppo")
        for record in ppo:
            for name in ("value_loss", "explained_variance", "kl", "critic/grad_norm", "value_clip_ratio", "ppo_kl", "rewards/model/mean",
                         "rewards/task/mean", "timing_s/values", "timing_s/ref", "timing_s/old_log_prob"):
                self.assertIn(name, record)
            self.assertEqual(record["training/num_updates"], 4)  # two epochs of two mini-batches
            self.assertEqual(record["reward"], record["rewards/model/mean"])  # the task's weight is 0
            self.assertEqual(record["sampling/sampling_logp_difference/max"], 0)
        self.assert_rises(ppo, "rewards/model/mean", 0.1)
        self.assertGreater(mean(ppo[-5:], "kl"), mean(ppo[:2], "kl"))
        self.assertLess(mean(ppo[-5:], "value_loss"), mean(ppo[:2], "value_loss"))
        self.assertIn("eval/copy/accuracy", ppo[-1])

    def test_dpo_widens_the_margin(self):
        dpo = self.stage("dpo")
        self.assertAlmostEqual(dpo[0]["rewards/margins"], 0, places=6)  # the policy is its own reference
        self.assert_rises(dpo, "rewards/margins", 0.1)
        self.assertGreater(mean(dpo[-6:], "rewards/accuracies"), 0.7)
        self.assertIn("eval/copy/pair_accuracy", dpo[-1])
        self.assertIn("eval/copy/accuracy", dpo[-1])

    def test_distillation_comes_closer_to_the_teacher(self):
        distill = self.stage("distill")
        self.assertLess(mean(distill[-3:], "teacher_kl"), 0.5 * mean(distill[:3], "teacher_kl"))
        for name in ("timing_s/teacher", "timing_s/old_log_prob"):
            self.assertIn(name, distill[0])
        gkd = self.stage("gkd")
        self.assertLess(mean(gkd[-3:], "distill_loss"), 0.5 * mean(gkd[:3], "distill_loss"))

    def test_the_teachers_completions_are_off_policy_and_say_so(self):
        self.assertIn("stage gkd: rollout.teacher_share = 0.5", self.err)
        self.assertIn("off-policy", self.err)
        gkd = self.stage("gkd")
        self.assertGreater(mean(gkd, "training/off_policy/teacher_share"), 0.3)
        self.assertLess(mean(gkd, "training/off_policy/teacher_share"), 0.7)
        for record in gkd:
            self.assertEqual(record["training/off_policy/trajectory_staleness/max"], 0)  # of the policy's own completions
            self.assertGreater(record["sampling/sampling_logp_difference/max"], 0)
        self.assertNotIn("training/off_policy/teacher_share", self.stage("distill")[0])

    def test_the_report_shows_what_each_stage_is_judged_by(self):
        page = (self.run_path / "report.html").read_text()
        for name in ("value_loss", "explained_variance", "critic/grad_norm", "rewards/model/mean", "rewards/margins",
                     "eval/copy/pair_accuracy", "teacher_kl", "distill_loss", "timing_s/values"):
            self.assertIn(name, page)


class Chains(harness.Case):
    def tensors_of(self, model):
        return harness.tensors(model / "model.safetensors")

    def generate(self, model):
        (self.folder / "p.jsonl").write_text('{"prompt": "copy ab="}\n')
        harness.temper("generate", "--model", model, "--prompts", "p.jsonl", "--out", "out.jsonl", cwd=self.folder, check=0)
        return json.loads((self.folder / "out.jsonl").read_text())

    def test_a_shared_backbone_leaves_a_language_model(self):
        ppo = PPO.replace('critic = {path = "stage:reward_model", learning_rate = 1e-3}', "critic.shared_backbone = true").replace(
            'reward = {functions = ["task", "model"], weights = [0.0, 1.0], model = "stage:reward_model"}', "")
        self.config(SMALL + SHORT + ppo.replace("max_steps = 15", "max_steps = 5"))
        harness.temper("run", "config.toml", cwd=self.folder, check=0)
        run = self.folder / "runs" / "tiny"
        last = harness.metrics(run)[-1]
        self.assertIn("value_loss", last)
        self.assertNotIn("critic/grad_norm", last)  # one optimiser, one gradient
        self.assertNotIn("score.weight", self.tensors_of(run / "model"))
        self.assertEqual(json.loads((run / "model" / "config.json").read_text())["architectures"], ["LlamaForCausalLM"])
        self.assertEqual(len(self.generate(run / "model")["completions"]), 1)

    def test_a_reward_model_is_a_classifier_that_another_run_may_use(self):
        self.config(SMALL + SHORT + REWARD_MODEL.replace("max_steps = 100", "max_steps = 3"))
        harness.temper("run", "config.toml", "--run.name=judge", cwd=self.folder, check=0)
        judge = self.folder / "runs" / "judge" / "model"
        self.assertEqual(json.loads((judge / "config.json").read_text())["architectures"], ["LlamaForSequenceClassification"])
        self.assertIn("score.weight", self.tensors_of(judge))
        self.assertNotIn("lm_head.weight", self.tensors_of(judge))
        self.config(SMALL + SHORT + PPO.replace("stage:reward_model", "runs/judge/model").replace("max_steps = 15", "max_steps = 2"))
        harness.temper("run", "config.toml", cwd=self.folder, check=0)
        self.assertIn("rewards/model/mean", harness.metrics(self.folder / "runs" / "tiny")[-1])


class Resume(harness.Case):
    def start(self, name):
        return subprocess.Popen([harness.TEMPER, "run", "config.toml", f"--run.name={name}"], cwd=self.folder,
                                stderr=subprocess.PIPE, text=True)

    def kill_at(self, name, stage, step):
        process = self.start(name)
        path = self.folder / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and f'"stage":"{stage}","step":{step},' in path.read_text().replace(": ", ":").replace(", ", ","):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def assert_kills_change_nothing(self, text, kills):
        self.config(text)
        harness.temper("run", "config.toml", "--run.name=whole", cwd=self.folder, check=0)
        for stage, step in kills:
            self.kill_at("killed", stage, step)
        # The last steps may have been quicker than the writing of their checkpoints, and than the kill: a stage with a model has ended.
        stage = kills[-1][0]
        goes_on = harness.has_saved(self.folder / "runs" / "killed", stage) and not (self.folder / "runs" / "killed" / "stages" / stage / "model").exists()
        result = harness.temper("run", "config.toml", "--run.name=killed", cwd=self.folder, check=0)
        self.assertEqual("resumed at step" in result.err, goes_on)
        whole, killed = self.folder / "runs" / "whole", self.folder / "runs" / "killed"
        self.assertEqual(harness.without_times(harness.metrics(whole)), harness.without_times(harness.metrics(killed)))
        self.assertEqual((whole / "completions.jsonl").read_text(), (killed / "completions.jsonl").read_text())
        self.assertEqual(harness.tensors(whole / "model" / "model.safetensors"), harness.tensors(killed / "model" / "model.safetensors"))
        return harness.metrics(killed)

    def test_ppo_with_its_critic_and_reward_model(self):
        text = SMALL + "[checkpoint]\nlocal_every_steps = 2\n" + SHORT
        text += REWARD_MODEL.replace("max_steps = 100", "max_steps = 6").replace("num_prompts_per_step = 64", "num_prompts_per_step = 8")
        text += PPO.replace("num_prompts_per_step = 16, max_steps = 15", "num_prompts_per_step = 4, max_steps = 12").replace(
            "kl_coef = 0.02", 'kl_coef = 0.02, kl_ctrl = {type = "adaptive", target = 0.01, horizon = 100}')
        records = self.assert_kills_change_nothing(text, [("reward_model", 3), ("ppo", 1), ("ppo", 5), ("ppo", 9)])
        coefficients = [record["kl_coef"] for record in records if "kl_coef" in record]
        self.assertGreater(len(set(coefficients)), 3)  # the controller's state survives

    def test_ppo_with_a_shared_backbone(self):
        text = SMALL + "[checkpoint]\nlocal_every_steps = 2\n" + SHORT + """
[[stage]]
name = "ppo"
algo = {preset = "ppo", kl_coef = 0.02, num_minibatches = 2, early_stop_kl = 0.5}
critic.shared_backbone = true
train = {num_prompts_per_step = 4, max_steps = 8}
"""
        self.assert_kills_change_nothing(text, [("ppo", 3), ("ppo", 6)])

    def test_dapo_with_refilled_batches(self):
        text = SMALL + "[checkpoint]\nlocal_every_steps = 2\n" + SFT.replace("max_steps = 60", "max_steps = 45") + """
[[stage]]
name = "dapo"
algo = {preset = "dapo", max_refills = 3}
train = {num_prompts_per_step = 6, max_steps = 10}
"""
        records = self.assert_kills_change_nothing(text, [("dapo", 3), ("dapo", 7)])
        dapo = [record for record in records if record["stage"] == "dapo" and record["step"] > 0]
        self.assertGreater(sum(record["training/refills"] for record in dapo), 0)
        for record in dapo:
            self.assertLessEqual(record["training/refills"], 3)

    def test_int8_rollouts_beside_training_in_f32(self):
        text = SMALL.replace("[rollout]\n", '[rollout]\ndtype = "int8"\n') + "[checkpoint]\nlocal_every_steps = 2\n" + SHORT + """
[[stage]]
name = "grpo"
algo = {preset = "grpo", kl_coef = 0.01}
train = {num_prompts_per_step = 8, max_steps = 8}
optim = {learning_rate = 5e-4}
"""
        records = self.assert_kills_change_nothing(text, [("grpo", 3), ("grpo", 6)])
        for record in records:
            if record["stage"] == "grpo" and record["step"] > 0:
                self.assertGreater(record["sampling/sampling_logp_difference/mean"], 0)  # other weights, reported
                self.assertLess(record["sampling/sampling_logp_difference/mean"], 0.05)
                self.assertNotEqual(record["sampling/importance_sampling_ratio/max"], 1)  # and corrected

    def test_pairs_and_the_teachers_share(self):
        text = SMALL + "[checkpoint]\nlocal_every_steps = 2\n" + SHORT + REST.replace("stage:ppo", "stage:sft").replace(
            "max_steps = 30", "max_steps = 6").replace("max_steps = 15", "max_steps = 6").replace("num_prompts_per_step = 16", "num_prompts_per_step = 4")
        self.assert_kills_change_nothing(text, [("dpo", 3), ("distill", 3), ("gkd", 3)])

    def test_another_frozen_model_is_refused(self):
        self.config(SMALL + SHORT)
        for name, seed in (("a", 1), ("b", 2)):
            harness.temper("run", "config.toml", f"--run.name={name}", f"--run.seed={seed}", cwd=self.folder, check=0)
        shown = self.folder / "teacher"
        shown.symlink_to(self.folder / "runs" / "a" / "model")
        self.config(SMALL.replace("[model]\n", '[model]\nteacher = "teacher"\n') + """
[checkpoint]
local_every_steps = 1
[train]
num_prompts_per_step = 2
max_steps = 400
[algo]
preset = "distill"
""")
        self.kill_at("killed", "distill", 3)
        shown.unlink()
        shown.symlink_to(self.folder / "runs" / "b" / "model")
        self.assert_error(harness.temper("run", "config.toml", "--run.name=killed", cwd=self.folder), 2, "another model.teacher",
                          "--checkpoint.resume=never")
        shown.unlink()
        shown.symlink_to(self.folder / "runs" / "a" / "model")
        harness.temper("run", "config.toml", "--run.name=killed", "--train.max_steps=6", cwd=self.folder, check=0)


class Refused(harness.Case):
    def assert_refused(self, text, *words, code=2):
        self.config(text)
        self.assert_error(harness.temper("run", "config.toml", cwd=self.folder), code, *words)
        self.assertFalse((self.folder / "runs").exists())

    def model_folder(self, name, vocab_size, architecture="LlamaForCausalLM", **more):
        """As far as it is looked at before anything is loaded: reading its weights would fail."""
        folder = self.folder / name
        folder.mkdir()
        config = {"architectures": [architecture], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 128, "vocab_size": vocab_size, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, **more}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_text("no weights")

    def stage(self, settings, name="s"):
        return SMALL + f'[[stage]]\nname = "{name}"\n{settings}\n'

    def test_settings_that_contradict_each_other(self):
        self.assert_refused(self.stage('algo.preset = "grpo"\nrollout.num_generations = 1'), "rollout.num_generations = 1", "2 or more")
        self.assert_refused(self.stage('algo.preset = "distill"'), "model.teacher is missing", "stage:NAME")
        self.assert_refused(self.stage('algo.preset = "gkd"'), "model.teacher is missing", "algo.distill_loss")
        self.assert_refused(self.stage('algo.preset = "grpo"\nrollout.teacher_share = 0.2'), "rollout.teacher_share", "distill")
        self.assert_refused(self.stage('algo.preset = "ppo"\ncritic = {path = "x", shared_backbone = true}'), "critic.path",
                            "critic.shared_backbone", "Remove one")
        self.assert_refused(self.stage('algo.preset = "ppo"\nreward.weights = [0.0]'), "reward.weights", "Raise one")
        self.assert_refused(self.stage('algo.preset = "ppo"\nreward.functions = ["model"]'), "reward.model is empty", "stage:NAME")
        self.assert_refused(self.stage('algo = {preset = "grpo", num_minibatches = 1000}\ntrain.num_prompts_per_step = 2'), "algo.num_minibatches",
                            "Lower it")
        self.assert_refused(self.stage('algo = {preset = "gdpo", kl_coef = 0.1, kl_placement = "reward"}'), "algo.kl_placement", "loss")
        self.assert_refused(self.stage('algo = {preset = "gkd", distill_top_k = 5}\nmodel.teacher = "t"'), "algo.distill_top_k", "forward_kl")

    def test_stages_that_are_not_there_or_of_the_wrong_kind(self):
        self.assert_refused(SMALL + SFT + PPO, "stage:reward_model", "no such stage", "sft")
        self.assert_refused(SMALL + PPO + REWARD_MODEL, "stage:reward_model", "no stage comes before")
        self.assert_refused(SMALL + SFT + PPO.replace("stage:reward_model", "stage:sft"), "reward.model", "makes no reward model",
                            "algo.preset = reward_model")
        self.assert_refused(SMALL + SFT + REWARD_MODEL + '[[stage]]\nname = "d"\nalgo.preset = "distill"\nmodel.teacher = "stage:reward_model"\n',
                            "model.teacher", "generates no text", "sft")

    def test_models_that_do_not_fit_before_their_weights_are_read(self):
        for name, vocab in (("other", 99), ("same", 260)):
            self.model_folder(name, vocab)
            self.model_folder(name + "_judge", vocab, "LlamaForSequenceClassification", id2label={"0": "score"})
        for key, settings in (("model.teacher", 'algo.preset = "distill"\nmodel.teacher = "{}"'),
                              ("model.reference", 'algo = {{preset = "grpo", kl_coef = 0.1}}\nmodel.reference = "{}"'),
                              ("critic.path", 'algo.preset = "ppo"\ncritic.path = "{}"')):
            self.assert_refused(self.stage(settings.format("other")), "stage s: " + key, "99", "same tokenizer")
            self.assert_refused(self.stage(settings.format("nowhere")), "stage s: " + key, "nowhere", "Give the path", code=3)
        judge = 'algo.preset = "ppo"\nreward = {{functions = ["task", "model"], model = "{}"}}'
        self.assert_refused(self.stage(judge.format("other_judge")), "reward.model", "99", "same tokenizer")
        self.assert_refused(self.stage(judge.format("nowhere")), "reward.model", "nowhere", code=3)
        self.assert_refused(self.stage(judge.format("same")), "reward.model", "LlamaForCausalLM", "algo.preset = reward_model")
        self.assert_refused(self.stage('algo = {preset = "gkd", distill_loss = "forward_kl", distill_top_k = 100000}\nmodel.teacher = "same"'),
                            "algo.distill_top_k = 100000", "vocabulary")


if __name__ == "__main__":
    harness.main()
