#!/usr/bin/env python3
"""How much of the sums of gradients hides behind the backward pass, over the bandwidth of the link between the ranks.

    .deps/python/bin/python bench/hidden_communication.py [--out docs/images/hidden_communication.svg] [--shard none]

Needs scripts/setup.sh --python, scripts/fetch_smollm2.sh and scripts/build.sh. Runs `temper bench train` over a simulated link once a bandwidth, prints
one JSON line each and then a table (Markdown), and draws it."""
import argparse
import json
import os
import pathlib

from curves import plotting, save, tidy
from run_json import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
BANDWIDTHS = [0.25, 0.5, 1, 2, 4, 8]  # GB/s


def measure(arguments, bandwidth):
    command = [arguments.temper, "bench", "train", "--model", arguments.model, "--tokens", 1024, "--micro-batch-tokens", 512, "--ranks", arguments.ranks,
               "--shard", arguments.shard, "--link-gb-s", bandwidth, "--seconds", arguments.seconds]
    # Ranks that wait leave the cores to those that compute.
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), OMP_WAIT_POLICY="passive")
    line = run(command, environment)
    print(json.dumps({**line, "link_gb_s": bandwidth}), flush=True)
    return line


def draw(path, lines):
    plot = plotting()
    figure, axis = plot.subplots(figsize=(5, 3), layout="constrained")
    axis.plot(BANDWIDTHS, [100 * line["comm_hidden_share"] for line in lines], marker="o", color="#2b6cb0")
    axis.axhline(90, color="#718096", linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlabel="link, GB/s", ylabel="hidden behind the backward pass, %", ylim=(0, 100))
    axis.set_xticks(BANDWIDTHS, [f"{b:g}" for b in BANDWIDTHS])
    tidy(axis)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shard", default="none", choices=["none", "optimizer", "full"])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="SVG to draw")
    arguments = parser.parse_args()
    if arguments.out:
        plotting()  # missing: say so before the measurements
    lines = [measure(arguments, bandwidth) for bandwidth in BANDWIDTHS]
    print("\n| link, GB/s | link busy, s a step | exposed, s a step | hidden | tokens/s |\n| --- | --- | --- | --- | --- |")
    for bandwidth, line in zip(BANDWIDTHS, lines):
        print(f"| {bandwidth:g} | {line['link_busy_s']:.2f} | {line['comm_exposed_s']:.2f} | {line['comm_hidden_share']:.0%} | {line['tokens_per_s']:.0f} |")
    if arguments.out:
        draw(arguments.out, lines)


if __name__ == "__main__":
    main()
