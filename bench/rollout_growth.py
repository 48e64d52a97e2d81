#!/usr/bin/env python3
"""How generation grows: decode tokens/s over the number of sequences, and over the length of their context.

    .deps/python/bin/python bench/rollout_growth.py [--out docs/images/rollout_growth.svg] [--dtype bf16]

Needs scripts/setup.sh --python, scripts/fetch_smollm2.sh and scripts/build.sh. Runs `temper bench rollout` once a point, prints one JSON line
each and then two tables (Markdown), and draws them. Only steps in which every sequence decodes are counted: no prefill."""
import argparse
import json
import os
import pathlib

from curves import plotting, save, tidy
from run_json import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEW_TOKENS = 64
SEQUENCES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CONTEXTS = [128, 256, 512, 1024, 2048, 4096]  # in the middle of the completion


def measure(arguments, prompts, completions, context):
    prompt_tokens = context - NEW_TOKENS // 2
    command = [arguments.temper, "bench", "rollout", "--model", arguments.model, "--dtype", arguments.dtype, "--seconds", 0, "--num-prompts", prompts,
               "--num-generations", completions, "--prompt-tokens", prompt_tokens, "--max-new-tokens", NEW_TOKENS]
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))
    line = run(command, environment)
    print(json.dumps({**line, "bench": "rollout_growth", "prompts": prompts, "completions": completions, "context": context}), flush=True)
    return line


def table(header, rows):
    print(f"\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def draw(path, sequences, shared, alone):
    plot = plotting()
    figure, (left, right) = plot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(SEQUENCES, sequences, marker="o", color="#2b6cb0")
    left.set(xscale="log", yscale="log", xlabel="sequences (8 a prompt from 8 on), context 128", ylabel="decode tokens/s", title="over sequences")
    left.set_xticks(SEQUENCES, [str(n) for n in SEQUENCES])
    right.plot(CONTEXTS, shared, marker="o", color="#2b6cb0", label="8 completions of one prompt")
    right.plot(CONTEXTS, alone, marker="s", color="#c05621", label="8 prompts, one completion each")
    right.set(xscale="log", xlabel="context, tokens", ylabel="decode tokens/s", title="over context", ylim=(0, None))
    right.set_xticks(CONTEXTS, [str(n) for n in CONTEXTS])
    right.legend(frameon=False)
    for axis in (left, right):
        tidy(axis)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="SVG to draw")
    arguments = parser.parse_args()
    if arguments.out:
        plotting()  # missing: say so before the measurements
    by_count = [measure(arguments, max(1, n // 8), min(n, 8), 128) for n in SEQUENCES]
    shared = [measure(arguments, 1, 8, context) for context in CONTEXTS]
    alone = [measure(arguments, 8, 1, context) for context in CONTEXTS]

    def rate(line):
        return round(line["decode_tokens_per_s"])

    table(["sequences", "decode tokens/s", "matrix-product share of the run"],
          [(n, rate(line), f"{line['gemm_limit_share']:.0%}") for n, line in zip(SEQUENCES, by_count)])
    table(["context", "8 completions of one prompt, tokens/s", "8 prompts, tokens/s", "prefill of 8 prompts, tokens/s"],
          [(n, rate(a), rate(b), round(b["prefill_tokens_per_s"])) for n, a, b in zip(CONTEXTS, shared, alone)])
    if arguments.out:
        draw(arguments.out, [rate(line) for line in by_count], [rate(line) for line in shared], [rate(line) for line in alone])


if __name__ == "__main__":
    main()
