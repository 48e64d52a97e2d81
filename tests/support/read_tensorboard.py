#!/usr/bin/env python3
"""Reads RUN_DIR/tb with TensorBoard's own reader and holds every scalar against RUN_DIR/metrics.jsonl.

usage: read_tensorboard.py RUN_DIR      (needs the package tensorboard: scripts/setup.sh --python)
Exit 0 and a line of counts, or 1 and the first differences.
"""
import collections
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def main(run_dir):
    expected = collections.defaultdict(list)
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        stage = record["stage"]
        for name, value in record.items():
            if name not in ("stage", "step", "policy_version", "time") and value is not None:
                expected[f"{stage}/{name}"].append(as_float32(value))
    accumulator = EventAccumulator(str(run_dir / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    differences = [f"only in TensorBoard: {tag}" for tag in sorted(tags - expected.keys())]
    differences += [f"only in metrics.jsonl: {tag}" for tag in sorted(expected.keys() - tags)]
    for tag in sorted(tags & expected.keys()):
        events = accumulator.Scalars(tag)
        steps = [event.step for event in events]
        if steps != sorted(set(steps)):
            differences.append(f"{tag}: steps do not rise: {steps[:20]}")
        values = [event.value for event in events]
        if len(values) != len(expected[tag]) or any(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(values, expected[tag])):
            differences.append(f"{tag}: {len(values)} values {values[:5]}..., expected {len(expected[tag])} {expected[tag][:5]}...")
    print("\n".join(differences[:20]) or f"{len(tags)} tags, {sum(map(len, expected.values()))} scalars agree")
    return 1 if differences or not tags else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(pathlib.Path(sys.argv[1])))
