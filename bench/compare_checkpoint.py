"""Saves and loads of one state by Temper, torch.save with fsync, torch.distributed.checkpoint (DCP) and safetensors, in turn, on one disk; and
what each makes of flipped bits. Prints JSON lines and a Markdown table.

    .deps/python/bin/python bench/compare_checkpoint.py [--gb 1] [--saves 4] [--flips 2000] [--dir DIR]

The state is that of `temper bench checkpoint`. Stall: how long the caller waits. Save: until all of it is durable (files and folder synced;
where a peer does not, the bench does). Load: into tensors that are there, from the disk (its cache is dropped), with every check the format
has. Raw beside: one file of as many bytes, reserved, written and synced just before, or read. Flips: single bits, each file in turn.
"""
import argparse
import json
import logging
import os
import pathlib
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import safetensors
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

ROOT = pathlib.Path(__file__).resolve().parent.parent
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)  # DCP tells of every damaged file


def state_of_size(size_bytes):
    """As src/apps/bench_checkpoint.cpp makes it."""
    state, left, count = {}, size_bytes // 4, 300
    for i in range(count):
        share = left if i + 1 == count else left * (1 + i % 3) // ((count - i) * 2)
        rows = max(1, share // 576)
        state[f"model/layer{i}.weight"] = torch.arange(rows * 576, dtype=torch.float32).view(rows, 576)
        left -= rows * 576
    return state


def small_state():
    """As src/apps/bench_checkpoint_flips.cpp makes it."""
    state = {}
    for group in ("model", "optim/exp_avg", "optim/exp_avg_sq"):
        for layer in range(4):
            matrix = (torch.arange(32 * 40, dtype=torch.float32) + layer).sin().view(32, 40)
            state[f"{group}/layers.{layer}.weight"] = matrix
            state[f"{group}/layers.{layer}.norm"] = matrix[0].clone()
    return state


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def sync_tree(path):
    for file in [*files_of(path), path, path.parent]:
        sync(file)


def drop_caches(path):
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class TorchSave:
    name = "torch.save + fsync"

    def save(self, state, path):
        torch.save(state, path / "state.pt")

    def load(self, path, into):
        for name, tensor in torch.load(path / "state.pt", weights_only=True).items():
            into[name].copy_(tensor)


class Dcp:
    name = "DCP save"

    def save(self, state, path):
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(path, sync_files=True), no_dist=True)

    def load(self, path, into):
        dcp.load(into, storage_reader=dcp.FileSystemReader(path), no_dist=True)


class DcpAsync(Dcp):
    name = "DCP async_save"

    def begin(self, state, path):
        writer = dcp.FileSystemWriter(path, sync_files=True)
        return dcp.async_save(dict(state), storage_writer=writer, no_dist=True)


class Safetensors:
    name = "safetensors + fsync"

    def save(self, state, path):
        safetensors.torch.save_file(state, path / "state.safetensors")

    def load(self, path, into):
        with safetensors.safe_open(path / "state.safetensors", "pt") as file:
            for name in file.keys():
                into[name].copy_(file.get_tensor(name))


def raw_seconds(path, data, size):
    """Of writing and of reading as many bytes as the state has."""
    begin = time.perf_counter()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.posix_fallocate(descriptor, 0, size)
    for offset in range(0, size, len(data)):
        os.pwrite(descriptor, data[: min(len(data), size - offset)], offset)
    os.fsync(descriptor)
    written = time.perf_counter() - begin
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(1 << 20)
    begin = time.perf_counter()
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        offset += count
    read = time.perf_counter() - begin
    os.close(descriptor)
    os.unlink(path)
    return written, read


def measure(peer, state, folder, saves):
    size = sum(tensor.nbytes for tensor in state.values())
    into = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    data, rounds = os.urandom(1 << 20), []
    for i in range(saves + 1):  # the first warms up
        path = folder / f"{i}.checkpoint"
        path.mkdir()
        raw_write, raw_read = raw_seconds(folder / "raw", data, size)
        begin = time.perf_counter()
        if hasattr(peer, "begin"):
            future = peer.begin(state, path)
            stall = time.perf_counter() - begin
            future.result()
        else:
            peer.save(state, path)
        sync_tree(path)
        saved = time.perf_counter() - begin
        drop_caches(path)
        begin = time.perf_counter()
        peer.load(path, into)
        loaded = time.perf_counter() - begin
        rounds.append({"stall_ms": 1e3 * (stall if hasattr(peer, "begin") else saved), "save_gb_s": size / saved / 1e9, "load_gb_s": size / loaded / 1e9,
                       "raw_write_gb_s": size / raw_write / 1e9, "raw_read_gb_s": size / raw_read / 1e9})
        shutil.rmtree(path)
    return {key: statistics.median(line[key] for line in rounds[1:]) for key in rounds[0]}


def flip(peer, state, folder, flips, seed):
    """Each flip: the load fails, gives what was saved, or something else without a word."""
    path = folder / "flips"
    path.mkdir()
    peer.save(state, path)
    into = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    files, chance = files_of(path), random.Random(seed)
    score = {"detected": 0, "harmless": 0, "silently_wrong": 0}
    for i in range(flips):
        file = files[i % len(files)]
        with open(file, "r+b") as out:
            bit = chance.randrange(file.stat().st_size * 8)

            def turn():
                out.seek(bit // 8)
                byte = out.read(1)[0] ^ (1 << bit % 8)
                out.seek(bit // 8)
                out.write(bytes([byte]))
                out.flush()

            turn()
            for tensor in into.values():
                tensor.fill_(0.1234)
            try:
                peer.load(path, into)
                good = all(torch.equal(into[name].view(torch.int32), tensor.view(torch.int32)) for name, tensor in state.items())
                score["harmless" if good else "silently_wrong"] += 1
            except (Exception, CheckpointException):  # DCP's is no Exception
                score["detected"] += 1
            turn()
    shutil.rmtree(path)
    return {"flips": flips, **score}


def temper(arguments, *options):
    command = [arguments.temper, "bench", "checkpoint", f"--dir={arguments.dir}", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", default=str(ROOT / "build/release/temper"))
    parser.add_argument("--gb", type=float, default=1)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", default=".")
    arguments = parser.parse_args()
    state = state_of_size(int(arguments.gb * 1e9))
    results = {}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = pathlib.Path(name)

        def add(side, fields):
            results.setdefault(side, {}).update(fields)
            print(json.dumps({"bench": "compare_checkpoint", "side": side, "gb": arguments.gb, "machine": platform.machine(), "torch": torch.__version__,
                              "command": " ".join(sys.argv), **fields}), flush=True)

        ours = temper(arguments, f"--gb={arguments.gb}", f"--saves={arguments.saves}")
        ours["stall_ms"] = ours["stall_ms_p50"]
        add("Temper", {key: ours[key] for key in ("stall_ms", "save_gb_s", "load_gb_s", "raw_write_gb_s", "raw_read_gb_s", "memcpy_ms")})
        peers = [TorchSave(), Dcp(), DcpAsync(), Safetensors()]
        for peer in peers:
            add(peer.name, measure(peer, state, folder, arguments.saves))
        del state
        if arguments.flips:
            ours = temper(arguments, f"--flips={arguments.flips}", f"--seed={arguments.seed}")
            add("Temper", {key: int(ours[key]) for key in ("flips", "detected", "harmless", "silently_wrong")})
            for peer in peers:
                if not isinstance(peer, DcpAsync):  # the same format as DCP's
                    add(peer.name, flip(peer, small_state(), folder, arguments.flips, arguments.seed))

    print("\n| | stall, ms | save, GB/s | of raw | verified load, GB/s | of raw | flips | detected | harmless | silently wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for side, r in results.items():
        cells = [f"{r['stall_ms']:.0f}", f"{r['save_gb_s']:.2f}", f"{r['save_gb_s'] / r['raw_write_gb_s']:.2f}", f"{r['load_gb_s']:.2f}",
                 f"{r['load_gb_s'] / r['raw_read_gb_s']:.2f}"]
        cells += [str(r.get(key, "as DCP save" if key == "flips" else "")) for key in ("flips", "detected", "harmless", "silently_wrong")]
        print(f"| {side} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
