#!/usr/bin/env python3
"""A reward (reward.command) that only takes time: the first completion of each group waits as long as a slow rollout would, log-normal with
sigma 1, cut at 4 times the mean; every reward is 0. bench/async_speedup.py paces workers with it.

    paced_reward.py MEAN_SECONDS SEED"""
import json
import math
import random
import sys
import time

mean, seed = float(sys.argv[1]), sys.argv[2]
# The mean of min(X, 4) for a log-normal X of mean 1: what the cut leaves of it.
phi = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
top = math.log(4) + 0.5
kept = phi(top - 1) + 4 * (1 - phi(top))
last = None
for line in sys.stdin:
    prompt = json.loads(line)["prompt"]
    if prompt != last:
        draw = math.exp(random.Random(seed + prompt).gauss(-0.5, 1))
        time.sleep(mean / kept * min(draw, 4))
    last = prompt
    print(0, flush=True)
