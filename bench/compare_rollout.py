#!/usr/bin/env python3
"""Generation beside transformers and llama.cpp: the same model in bf16, prompts, lengths and threads, in turn on this machine.

    bench/compare_rollout.py [--rounds 3] [--peer-rounds 1] [--cases group one long_prompt]

Needs scripts/setup.sh --peers, scripts/fetch_smollm2.sh and scripts/build.sh. Cases: group (8 prompts x 8 completions x 128 tokens), one
(a single sequence of 128 tokens), long_prompt (one prompt of 512 tokens, for its prefill). Prints one JSON line a run, then the table
(Markdown) of the medians. llama.cpp's figures leave sampling out; transformers' and Temper's have it in. On a machine that does other
work, --threads 1 --per-cpu-second compares tokens by the processor time they took."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

from run_json import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".deps/python/bin/python"
CASES = {  # prompts, completions, prompt tokens, new tokens, transformers too
    "group": (8, 8, 80, 128, True),
    "one": (1, 1, 80, 128, True),
    "long_prompt": (1, 1, 512, 2, False),
}
LABELS = {"group": "8 prompts x 8 completions, tokens/s", "one": "one sequence, tokens/s"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--rounds", type=int, default=3, help="of Temper and llama.cpp, in turn")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of transformers")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", nargs="*", default=["16", "32", "64"], help="llama.cpp: sequences of one call, each tried in the first round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-new-tokens", type=int, help="in place of 128")
    parser.add_argument("--per-cpu-second", action="store_true", help="tokens by processor time, not by wall time")
    arguments = parser.parse_args()
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    gguf = ROOT / ".deps" / (pathlib.Path(arguments.model).name + ".bf16.gguf")
    if not gguf.exists():
        subprocess.run([PYTHON, ROOT / "bench/hf_to_gguf.py", arguments.model, f"{gguf}.partial"], check=True)
        os.replace(f"{gguf}.partial", gguf)

    results = {case: {"Temper": [], "llama.cpp": [], "transformers": []} for case in arguments.cases}
    for case in arguments.cases:
        prompts, completions, prompt_tokens, new_tokens, with_transformers = CASES[case]
        new_tokens = min(new_tokens, arguments.max_new_tokens or new_tokens)
        shape = ["--num-prompts", prompts, "--num-generations", completions, "--prompt-tokens", prompt_tokens, "--max-new-tokens", new_tokens]
        peer = [PYTHON, ROOT / "bench/rollout_peer.py"]
        batch = arguments.batch
        for round_index in range(max(arguments.rounds, arguments.peer_rounds)):
            sides = []
            if round_index < arguments.rounds:
                sides.append(("Temper", [arguments.temper, "bench", "rollout", "--model", arguments.model, "--dtype", "bf16", "--seconds", 0, *shape]))
                sides.append(("llama.cpp", [*peer, "llama.cpp", "--model", gguf, "--threads", arguments.threads, *shape, "--batch", *batch]))
            if with_transformers and round_index < arguments.peer_rounds:
                sides.append(("transformers", [*peer, "transformers", "--model", arguments.model, "--threads", arguments.threads, *shape]))
            for name, command in sides:
                line = run(command, environment)
                if arguments.per_cpu_second:
                    line["tokens_per_s"] = prompts * completions * new_tokens / line["cpu_s"]
                results[case][name].append(line)
                print(json.dumps({"bench": "compare_rollout", "case": case, "side": name, "round": round_index, **line}), flush=True)
                if name == "llama.cpp":
                    batch = [line["best_batch"]]

    def middle(case, name, key):
        values = [line[key] for line in results[case][name] if key in line]
        return statistics.median(values) if values else None

    print("\n| bf16, " + f"{arguments.threads} threads{', processor time' if arguments.per_cpu_second else ''} | Temper | llama.cpp | transformers | Temper / llama.cpp | Temper / transformers |")
    print("| --- | --- | --- | --- | --- | --- |")

    def row(label, case, key):
        ours, *theirs = [middle(case, name, key) for name in ("Temper", "llama.cpp", "transformers")]
        cells = ["-" if value is None else f"{value:.0f}" for value in (ours, *theirs)]
        ratios = ["-" if not value or ours is None else f"{ours / value:.2f}" for value in theirs]
        print("| " + " | ".join([label, *cells, *ratios]) + " |")

    for case in arguments.cases:
        if case in LABELS:
            row(LABELS[case], case, "tokens_per_s")
        if case != "one" and not arguments.per_cpu_second:
            row(f"prefill of {CASES[case][0]} x {CASES[case][2]} tokens, tokens/s", case, "prefill_tokens_per_s")
    if "group" in arguments.cases:
        row("peak memory, MiB", "group", "peak_rss_mb")
        share = middle("group", "Temper", "gemm_limit_share")
        if share is not None:
            print(f"\nTemper's share of the matrix-product limit in the first case: {share:.0%}")


if __name__ == "__main__":
    main()
