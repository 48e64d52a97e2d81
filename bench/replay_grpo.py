#!/usr/bin/env python3
"""Is the trainer's arithmetic the peers'? The completions that `temper run configs/smollm2_arithmetic.toml` sampled and recorded
(--log.completions=1000), trained on again step by step by transformers and torch.optim.AdamW under bf16 autocast with the same loss
(GRPO, mean over tokens), and the greedy accuracies after the same steps beside those of the run.

    bench/replay_grpo.py RUN_DIR --model models/SmolLM2-135M-Instruct [--threads 2] [--dtype f32]

Sampling is left out of the comparison: what differs is rounding, if the two trainers agree. Needs scripts/setup.sh --python."""
import argparse
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_add1 import accuracy, problems


def token_ids(tokenizer, completion):
    """The completion's tokens; its text may have been written by other tokens, which is rare: tokens beside tokens_run shows it."""
    ids = tokenizer(completion["text"], add_special_tokens=False)["input_ids"]
    return ids + ([tokenizer.eos_token_id] if completion["finish_reason"] == "stop" else [])


def step_loss(model, tokenizer, groups, autocast):
    """GRPO with the group's own standard deviation (ddof 1) + 1e-4; ratio 1; mean over the step's completion tokens."""
    sequences, advantages = [], []
    for group in groups:
        rewards = torch.tensor([float(next(iter(c["rewards"].values()))) for c in group["completions"]])
        spread = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        message = [{"role": "user", "content": group["prompt"]}]
        prompt = tokenizer(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True), add_special_tokens=False)["input_ids"]
        for completion, advantage in zip(group["completions"], spread):
            sequences.append((prompt, token_ids(tokenizer, completion)))
            advantages.append(advantage)
    tokens = sum(len(completion) for _, completion in sequences)
    if all(a == 0 for a in advantages):
        return None, tokens
    length = max(len(p) + len(c) for p, c in sequences)
    ids = torch.full((len(sequences), length), tokenizer.eos_token_id)
    attention, mask = torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        attention[row, :end] = 1
        mask[row, len(prompt) : end] = 1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    ratio = torch.exp(logprobs - logprobs.detach())
    return -(ratio * torch.stack(advantages)[:, None] * mask[:, 1:]).sum() / tokens, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--evaluate-from", type=int, default=0, help="first step whose accuracies are measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    near, far = list(problems(777, 200, 1, 9)), list(problems(778, 100, 10, 20))
    records = [json.loads(line) for line in open(arguments.run_dir / "metrics.jsonl")]
    steps = {record["step"]: record for record in records if "loss" in record}
    evaluations = {record["step"]: record for record in records if "eval/add1_near/accuracy" in record}
    groups = {}
    for line in open(arguments.run_dir / "completions.jsonl"):
        group = json.loads(line)
        groups.setdefault(group["step"], []).append(group)
    for step, record in sorted(steps.items()):
        loss, tokens = step_loss(model, tokenizer, groups[step], arguments.dtype == "bf16")
        if loss is not None:
            loss.backward()
        for parameter in model.parameters():  # a step without spread still moves on its momentum
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        line = {"step": step, "loss": float(loss.detach()) if loss is not None else 0.0, "loss_run": record["loss"], "grad_norm": norm,
                "grad_norm_run": record["grad_norm"], "tokens": tokens,
                "tokens_run": round(record["completions/mean_length"] * sum(len(g["completions"]) for g in groups[step]))}
        if step in evaluations and step >= arguments.evaluate_from:
            model.eval()
            line |= {"near": accuracy(model, tokenizer, near, 48), "near_run": evaluations[step]["eval/add1_near/accuracy"],
                     "far": accuracy(model, tokenizer, far, 48), "far_run": evaluations[step]["eval/add1_far/accuracy"]}
            model.train()
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
