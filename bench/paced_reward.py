#!/usr/bin/env python3
"""A reward (reward.command) that only takes time: the first completion of each group waits as long as a slow rollout would, log-normal with
sigma 1, cut at 4 times the mean; every reward is 0. bench/async_speedup.py and bench/slurm_faults.py pace workers with it.

    paced_reward.py MEAN_SECONDS SEED"""
import json
import math
import random
import sys
import time


def pace(mean, seed, prompt):
    """Seconds that the group of this prompt takes: the same in every run."""
    # The mean of min(X, 4) for a log-normal X of mean 1: what the cut leaves of it.
    phi = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
    top = math.log(4) + 0.5
    kept = phi(top - 1) + 4 * (1 - phi(top))
    return mean / kept * min(math.exp(random.Random(seed + prompt).gauss(-0.5, 1)), 4)


def main():
    mean, seed = float(sys.argv[1]), sys.argv[2]
    last = None
    for line in sys.stdin:
        prompt = json.loads(line)["prompt"]
        if prompt != last:
            time.sleep(pace(mean, seed, prompt))
        last = prompt
        print(0, flush=True)


if __name__ == "__main__":
    main()
