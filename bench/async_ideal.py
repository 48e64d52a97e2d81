#!/usr/bin/env python3
"""What asynchrony could give at most: the trainer, hub and workers of bench/async_speedup.py in virtual time, where nothing but training and the
paced groups takes any, and a worker has new weights at once.

    bench/async_ideal.py [--training 0.08] [--generating 0] [--seeds 42 43 44] [--steps 100]

A group may begin while at most (max_staleness + 1) steps' groups beyond the present version were begun (AReaL's rule, docs/async.md); a step takes
whichever groups are finished, the oldest first; what would be too old is dropped and begun anew. --generating is added to each group's paced time. Prints a table (Markdown)."""
import argparse
import heapq
import statistics

from paced_reward import pace


def simulate(arguments, staleness, seed):
    """(seconds a step, share of the time in which the trainer waits, groups dropped a step)"""
    mean = arguments.training * arguments.workers / arguments.prompts
    now = waiting_since = waited = 0.0
    version = begun = drawn = dropped = 0  # begun: and not dropped
    free, running, finished, trained_at, ends = arguments.workers, [], [], None, []  # groups: (end, version) and versions
    while len(ends) < arguments.steps:
        while free > 0 and begun < (version + staleness + 1) * arguments.prompts:
            heapq.heappush(running, (now + arguments.generating + pace(mean, str(seed), str(drawn)), version))
            begun, drawn, free = begun + 1, drawn + 1, free - 1
        if trained_at is None and len(finished) >= arguments.prompts:
            finished = sorted(finished)[arguments.prompts:]
            waited += now - waiting_since
            trained_at = now + arguments.training
        now = min([end for end, _ in running[:1]] + ([trained_at] if trained_at is not None else []))
        if trained_at == now:
            trained_at, waiting_since, version = None, now, version + 1
            ends.append(now)
        while running and running[0][0] <= now:
            finished.append(heapq.heappop(running)[1])
            free += 1
        # What is taken next is trained on as step `version`, or one later while a step is under way.
        oldest = version + (trained_at is not None) - staleness
        fresh = [of for of in finished if of >= oldest]
        dropped, begun, finished = dropped + len(finished) - len(fresh), begun - len(finished) + len(fresh), fresh
    return (ends[-1] - ends[0]) / (len(ends) - 1), waited / now, dropped / len(ends)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=float, default=0.08, help="seconds a step, and mean generation of one")
    parser.add_argument("--generating", type=float, default=0.0, help="seconds a group beside its pace")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    print("| max_staleness | s a step | speed-up | trainer idle | dropped a step |\n| --- | --- | --- | --- | --- |")
    synchronous = None
    for staleness in (0, 1, 2, 4):
        runs = [simulate(arguments, staleness, seed) for seed in arguments.seeds]
        step = statistics.mean(run[0] for run in runs)
        synchronous = synchronous or step
        print(f"| {staleness} | {step:.3f} | {synchronous / step:.2f} | {statistics.mean(run[1] for run in runs):.0%} | {statistics.mean(run[2] for run in runs):.1f} |")


if __name__ == "__main__":
    main()
