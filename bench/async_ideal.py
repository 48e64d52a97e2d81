#!/usr/bin/env python3
"""What asynchrony could give at most: the trainer, hub and workers of bench/async_speedup.py in virtual time, where only training and the paced
groups take any.

    bench/async_ideal.py [--training 0.08] [--seeds 42 43 44] [--steps 100]
                         [--training-beside 0.08] [--generating 0] [--handover 0]

The rules are the hub's (docs/async.md): a group may begin while at most (max_staleness + 1) steps' groups beyond the present version were begun,
with weights that its step can still use; a step takes whichever groups are finished, the oldest first; what is too old is dropped and begun anew, as
slow as before, with the newest weights. A worker takes new weights between two groups. The other times show what a real machine adds:
--training-beside is a step's training while workers take cores from it, --generating a group's time beside its pace, --handover the time until a worker
can use new weights. Prints a table (Markdown)."""
import argparse
import heapq
import itertools
import statistics

from paced_reward import pace


class Run:
    def __init__(self, arguments, staleness, seed):
        self.arguments, self.staleness, self.seed = arguments, staleness, str(seed)
        self.now = self.waiting_since = self.waited = 0.0
        self.version = self.num_dropped = 0
        self.in_batches = self.running = 0  # groups
        self.batch, self.training, self.ends = 0, False, []
        self.finished, self.dropped = [], []  # (version, number of the prompt); (number, oldest version allowed)
        self.idle = {worker: 0 for worker in range(arguments.workers)}  # with weights of this version
        self.offered = [0] * arguments.workers
        self.events, self.order, self.prompts = [], itertools.count(), itertools.count()

    def after(self, delay, act, *what):
        heapq.heappush(self.events, (self.now + delay, next(self.order), act, what))

    def fill_batch(self):
        while not self.training and self.finished:
            version, prompt = heapq.heappop(self.finished)
            if version < self.version - self.staleness:
                self.num_dropped += 1
                self.dropped.append((prompt, self.version))
                continue
            self.in_batches, self.batch = self.in_batches + 1, self.batch + 1
            if self.batch == self.arguments.prompts:
                self.training, self.batch = True, 0
                self.waited += self.now - self.waiting_since
                self.after(self.arguments.training_beside if self.staleness else self.arguments.training, self.trained)

    def trained(self):
        self.training, self.version, self.waiting_since = False, self.version + 1, self.now
        self.ends.append(self.now)
        self.after(self.arguments.handover, self.offer, self.version)

    def offer(self, version):
        self.offered = [version] * self.arguments.workers
        self.idle = {worker: version for worker in self.idle}

    def begin_groups(self):
        limit = (self.version + self.staleness + 1) * self.arguments.prompts
        while (begun := self.in_batches + len(self.finished) + self.running) < limit:
            floor = begun // self.arguments.prompts - self.staleness
            able = lambda oldest: next((worker for worker, version in self.idle.items() if version >= max(floor, oldest)), None)
            again = next((one for one in sorted(self.dropped) if able(one[1]) is not None), None)
            worker = able(again[1] if again else 0)
            if worker is None:
                return
            if again:
                self.dropped.remove(again)
            prompt = again[0] if again else next(self.prompts)
            mean = self.arguments.training * self.arguments.workers / self.arguments.prompts
            self.running += 1
            self.after(self.arguments.generating + pace(mean, self.seed, str(prompt)), self.finish, worker, self.idle.pop(worker), prompt)

    def finish(self, worker, version, prompt):
        self.running -= 1
        heapq.heappush(self.finished, (version, prompt))
        self.idle[worker] = self.offered[worker]

    def figures(self):
        """(seconds a step, share of the time in which the trainer waits, groups dropped a step)"""
        while len(self.ends) < self.arguments.steps:
            self.fill_batch()
            self.begin_groups()
            self.now, _, act, what = heapq.heappop(self.events)
            act(*what)
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1), self.waited / self.now, self.num_dropped / len(self.ends)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=float, default=0.08, help="seconds a step, and mean generation of one")
    parser.add_argument("--training-beside", type=float, help="seconds a step while workers work (default: the same)")
    parser.add_argument("--generating", type=float, default=0.0, help="seconds a group beside its pace")
    parser.add_argument("--handover", type=float, default=0.0, help="seconds until new weights can be used")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42, 43, 44])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    arguments.training_beside = arguments.training_beside or arguments.training
    print("| max_staleness | s a step | speed-up | trainer idle | dropped a step |\n| --- | --- | --- | --- | --- |")
    synchronous = None
    for staleness in (0, 1, 2, 4):
        runs = [Run(arguments, staleness, seed).figures() for seed in arguments.seeds]
        step = statistics.mean(run[0] for run in runs)
        synchronous = synchronous or step
        print(f"| {staleness} | {step:.3f} | {synchronous / step:.2f} | {statistics.mean(run[1] for run in runs):.0%} | {statistics.mean(run[2] for run in runs):.1f} |")


if __name__ == "__main__":
    main()
