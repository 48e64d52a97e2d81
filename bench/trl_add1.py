#!/usr/bin/env python3
"""The reference task (docs/tasks.md, add1) in TRL: the other side of bench/compare_grpo.py, run by it as a process of its own.
Prints one JSON object: rewards by step, seconds by step, accuracies, seconds of start-up, training and evaluation."""
import argparse
import json
import re
import time

START = time.monotonic()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

MASK = (1 << 64) - 1


def split_mix(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def problems(seed, count, low, high):
    draws = split_mix(seed)
    for _ in range(count):
        a = low + next(draws) % (high - low + 1)
        b = low + next(draws) % (high - low + 1)
        yield f"What is {a} + {b}? Answer with just the number.", str(a + b)


def score(text, answer):
    numbers = re.findall(r"[0-9]+", text)
    return 1.0 if numbers and numbers[-1] == answer else 0.0


def accuracy(model, tokenizer, items, new_tokens):
    device = model.device.type
    correct = 0
    for begin in range(0, len(items), 50):
        part = items[begin : begin + 50]
        texts = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True) for p, _ in part]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(device)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            out = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
        for row, (_, answer) in zip(out[:, batch["input_ids"].shape[1] :], part):
            correct += score(tokenizer.decode(row, skip_special_tokens=True), answer)
    return correct / len(items)


class Clock(TrainerCallback):
    """Seconds of each step; between steps, the accuracy of the policy as it stands (evaluate() -> dict) at the steps asked for."""

    def __init__(self, evaluate, evaluate_at):
        self.seconds, self.begun, self.evaluate, self.evaluate_at, self.curve, self.pause = [], None, evaluate, evaluate_at, {}, 0.0

    def on_step_begin(self, *_, **__):
        self.begun = time.monotonic()

    def on_step_end(self, _, state, *__, model, **___):
        now = time.monotonic()
        self.seconds.append(now - self.begun)
        if state.global_step in self.evaluate_at:
            model.eval()
            self.curve[state.global_step] = self.evaluate(model)
            model.train()
        self.pause += time.monotonic() - now


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--evaluate-at", type=int, nargs="*", default=[], help="steps after which the greedy accuracies are measured as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.float32)
    rows = [{"prompt": [{"role": "user", "content": p}], "answer": a} for p, a in problems(1, 4 * arguments.steps, 1, 9)]
    near, far = list(problems(777, 200, 1, 9)), list(problems(778, 100, 10, 20))

    def reward(completions, answer, **_):
        return [score(completion[0]["content"], expected) for completion, expected in zip(completions, answer)]

    config = GRPOConfig(
        output_dir="trl_out", use_cpu=arguments.device == "cpu", bf16=True, seed=arguments.seed, max_steps=arguments.steps, per_device_train_batch_size=32,
        num_generations=8, max_completion_length=48, beta=0.0, epsilon=0.2, loss_type="dapo", scale_rewards="group", temperature=1.0,
        learning_rate=2e-5, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, num_iterations=1,
        gradient_accumulation_steps=1, shuffle_dataset=False, gradient_checkpointing=False, logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, dataloader_num_workers=0)

    def evaluate(policy):
        return {"near": accuracy(policy, tokenizer, near, 48), "far": accuracy(policy, tokenizer, far, 48)}

    clock = Clock(evaluate, arguments.evaluate_at)
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                          callbacks=[clock])
    startup = time.monotonic() - START
    begun = time.monotonic()
    trainer.train()
    training = time.monotonic() - begun - clock.pause
    begun = time.monotonic()
    result = evaluate(trainer.model.eval()) | {
        "curve": clock.curve,
        "eval_s": 0.0,
        "startup_s": startup,
        "train_s": training,
        "step_s": clock.seconds,
        "reward": [entry["reward"] for entry in trainer.state.log_history if "reward" in entry],
    }
    result["eval_s"] = time.monotonic() - begun
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
