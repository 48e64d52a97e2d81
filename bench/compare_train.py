#!/usr/bin/env python3
"""Training beside transformers: the same model, tokens a step and threads, in turn on this machine.

    bench/compare_train.py [--rounds 3] [--seq-len 512] [--tokens 2048]

A step is forward, backward, gradient clipping and AdamW: f32 weights, products in bf16 (transformers under autocast, as TRL trains). Needs
scripts/setup.sh --python, scripts/fetch_smollm2.sh and scripts/build.sh. Prints one JSON line a run, then the table (Markdown)."""
import argparse
import json
import os
import pathlib
import statistics

from run_json import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".deps/python/bin/python"


def transformers_side(arguments):
    import resource
    import time

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, torch_dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    tokens = torch.randint(0, model.config.vocab_size, (arguments.tokens // arguments.seq_len, arguments.seq_len))

    def step():
        start = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.monotonic() - start

    step()
    step_s = statistics.median(step() for _ in range(3))
    print(json.dumps({"tokens_per_s": tokens.numel() / step_s, "step_s": step_s,
                      "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", action="store_true", help="only transformers' side, in this process")
    arguments = parser.parse_args()
    if arguments.peer:
        return transformers_side(arguments)
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), HF_HUB_OFFLINE="1")
    shape = ["--model", arguments.model, "--seq-len", arguments.seq_len, "--tokens", arguments.tokens]
    sides = {"Temper": [arguments.temper, "bench", "train", "--dtype", "bf16", "--micro-batch-tokens", arguments.tokens, "--seconds", 8, *shape],
             "transformers": [PYTHON, __file__, "--peer", "--threads", arguments.threads, *shape]}
    results = {name: [] for name in sides}
    for round_index in range(arguments.rounds):
        for name, command in sides.items():
            results[name].append(run(command, environment))
            print(json.dumps({"bench": "compare_train", "side": name, "round": round_index, **results[name][-1]}), flush=True)

    def middle(name, key):
        return statistics.median(line[key] for line in results[name])

    print(f"\n| {arguments.tokens} tokens a step, bf16, {arguments.threads} threads | Temper | transformers | ratio |\n| --- | --- | --- | --- |")
    for label, key in (("tokens/s", "tokens_per_s"), ("peak memory, GB", "peak_memory_gb")):
        ours, theirs = middle("Temper", key), middle("transformers", key)
        print(f"| {label} | {ours:.{0 if key == 'tokens_per_s' else 2}f} | {theirs:.{0 if key == 'tokens_per_s' else 2}f} | {ours / theirs:.2f} |")
    print(f"\nTemper's share of the matrix-product limit: {middle('Temper', 'gemm_limit_share'):.0%}")


if __name__ == "__main__":
    main()
