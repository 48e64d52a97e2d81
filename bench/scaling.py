#!/usr/bin/env python3
"""Trainer throughput on 8, 64 and 512 GPUs, projected: replays the schedule of train.shard = "full" with train.replicas (one replica a node) on two
resources, a GPU's arithmetic and its link, from figures measured on one GPU.

    bench/scaling.py [--parameters 4.0e9] [--blocks 36] [--tokens 32768] [--flops 148e12] [--nvlink 300] [--network 45] [--efficiency 0.9]

The schedule is that of src/trainer/sharded_weights.h: a block's weights travel while the one before it computes, forward and again backward; its
gradients travel while the one below computes; the replicas' sum comes last. Prints a table (Markdown). No GPU and no network is touched."""
import argparse

GPUS_A_NODE = 8


def step_seconds(arguments, gpus):
    """Seconds of one step and, of these, seconds in which the GPU waits for the links."""
    replicas = max(1, gpus // GPUS_A_NODE)
    group = min(gpus, GPUS_A_NODE)
    block = arguments.parameters / arguments.blocks  # parameters
    # f32 masters travel, and f32 gradients; a ring moves (n - 1) / n of the buffer over each link.
    nvlink = arguments.nvlink * 1e9 * arguments.efficiency
    move = 4 * block * (group - 1) / group / nvlink + arguments.latency * 1e-6 * group if group > 1 else 0
    forward = 2 * block * arguments.tokens / arguments.flops
    backward = 3 * forward  # recomputed, then two products for one
    arithmetic = link = 0.0  # when each is free
    arrived = []  # when a block's weights are there
    passes = 2 * arguments.blocks  # forward, then backward in the other direction
    reduced = 0.0
    for i in range(passes):
        if i == 0:
            link += move
            arrived.append(link)
        # The next block's weights set out when this one begins.
        begin = max(arithmetic, arrived[i])
        if i + 1 < passes:
            link = max(link, begin) + move
            arrived.append(link)
        arithmetic = begin + (forward if i < arguments.blocks else backward)
        if i >= arguments.blocks:  # its gradients to their owners
            link = max(link, arithmetic) + move
            reduced = link
    end = max(arithmetic, reduced)
    if replicas > 1:  # each GPU's part of the gradients, over its own network card
        share = 4 * arguments.parameters / group
        end += 2 * (replicas - 1) / replicas * share / (arguments.network * 1e9 * arguments.efficiency) + 2 * replicas * arguments.latency * 1e-6
    end += arguments.parameters / group * 28 / (arguments.memory * 1e12)  # AdamW reads and writes masters, moments, gradients
    busy = arguments.blocks * (forward + backward)
    return end, end - busy


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=4.0e9)
    parser.add_argument("--blocks", type=int, default=36)
    parser.add_argument("--tokens", type=float, default=32768, help="a step and GPU")
    parser.add_argument("--flops", type=float, default=148e12, help="arithmetic that one GPU does in a second, recomputation counted")
    parser.add_argument("--nvlink", type=float, default=300, help="bus bandwidth within a node, GB/s")
    parser.add_argument("--network", type=float, default=45, help="of a GPU's network card, GB/s")
    parser.add_argument("--latency", type=float, default=10, help="of one hop, microseconds")
    parser.add_argument("--memory", type=float, default=3.0, help="memory bandwidth, TB/s")
    parser.add_argument("--efficiency", type=float, default=0.9, help="of a link, as far as sums hide in bench/hidden_communication.py")
    arguments = parser.parse_args()
    print("| GPUs | s a step | tokens/s | tokens/s a GPU | of one node's | waiting for links |\n| --- | --- | --- | --- | --- | --- |")
    first = None
    for gpus in (8, 64, 512):
        seconds, waiting = step_seconds(arguments, gpus)
        rate = arguments.tokens / seconds
        first = first or rate
        print(f"| {gpus} | {seconds:.2f} | {gpus * rate:,.0f} | {rate:,.0f} | {rate / first:.0%} | {waiting / seconds:.1%} |")


if __name__ == "__main__":
    main()
