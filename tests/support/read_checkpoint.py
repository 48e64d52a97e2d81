"""Reads a checkpoint as other people's programs do, and compares what they see.

    read_checkpoint.py [CHECKPOINT]        default: the golden checkpoint, whose values are also checked

Three ways must agree, bit for bit: the reader printed in docs/checkpoint_format.md (manifest and numpy), h5py on the shards,
h5py on global.h5. Also: a flipped bit is noticed by the printed reader. Exit status 1 and a sentence if not.
"""
import os
import re
import shutil
import sys
import tempfile

import h5py
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = os.path.join(ROOT, "tests/checkpoint/data/format_1/step_000007")


def printed_reader():
    with open(os.path.join(ROOT, "docs/checkpoint_format.md"), encoding="utf-8") as file:
        code = re.search(r"```python\n(.*?)```", file.read(), re.S).group(1)
    names = {}
    exec(compile(code, "docs/checkpoint_format.md", "exec"), names)
    if names["xxhash"] is None:
        sys.exit("The package xxhash is missing: pip install xxhash.")
    return names["read_checkpoint"]


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.shape == () and b.shape == (1,):
        b = b.reshape(())
    if a.dtype == bool:
        b = b.astype(bool)
    return a.shape == b.shape and a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=") and a.tobytes() == b.tobytes()


def from_shards(folder, manifest, tensor):
    """The tensor from the shards' own names and attributes, without the manifest's offsets."""
    whole, seen = None, {}
    for box in tensor["boxes"]:
        k = seen[box["shard"]] = seen.get(box["shard"], -1) + 1
        with h5py.File(os.path.join(folder, manifest["files"][box["shard"]]["name"])) as file:
            data_set = file[tensor["name"] + (f"#{k}" if k else "")]
            if data_set.chunks or data_set.is_virtual or data_set.external or data_set.id.get_offset() != box["offset"]:
                sys.exit(f"{tensor['name']}: {data_set} is not the contiguous data set of the manifest.")
            part, start = data_set[:], data_set.attrs.get("start", [0] * data_set.ndim)
            shape = data_set.attrs.get("tensor_shape", data_set.shape)
        if whole is None:
            whole = np.zeros(tuple(shape), part.dtype)
        whole[tuple(slice(s, s + n) for s, n in zip(start, part.shape))] = part
    return whole


def check_golden_values(tensors):
    offsets = {"model/embed.weight": -3, "model/norm.weight": 2, "optim/exp_avg/embed.weight": 1, "critic/mask": -4}
    for name, offset in offsets.items():
        wanted = ((np.arange(tensors[name].size) + offset) / 4).reshape(tensors[name].shape).astype(tensors[name].dtype)
        if not same(tensors[name], wanted):
            sys.exit(f"{name} is {tensors[name]}, {wanted} was saved.")
    if tensors["optim/step"] != 7 or tensors["optim/empty"].shape != (0, 3):
        sys.exit("optim/step or optim/empty is not what was saved.")


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else GOLDEN
    read_checkpoint = printed_reader()
    manifest, tensors = read_checkpoint(folder)
    with h5py.File(os.path.join(folder, "global.h5")) as whole:
        for tensor in manifest["tensors"]:
            name = tensor["name"]
            if not same(tensors[name], whole[name][:]):
                sys.exit(f"{name}: global.h5 shows {whole[name][:]}, the manifest {tensors[name]}.")
            if tensor["boxes"] and not same(tensors[name], from_shards(folder, manifest, tensor)):
                sys.exit(f"{name}: the shards' data sets do not give what the manifest does.")
    if os.path.abspath(folder) == GOLDEN:
        check_golden_values(tensors)
        with tempfile.TemporaryDirectory() as scratch:
            copy = shutil.copytree(folder, os.path.join(scratch, "step_000007"))
            for name in ("manifest.json", "shard_00001.h5", "global.h5"):
                path = os.path.join(copy, name)
                with open(path, "r+b") as file:
                    file.seek(os.path.getsize(path) // 2)
                    byte = file.read(1)[0] ^ 16
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte]))
                try:
                    read_checkpoint(copy)
                    sys.exit(f"A flipped bit of {name} was not noticed.")
                except ValueError as error:
                    assert name in str(error), error
                shutil.copyfile(os.path.join(folder, name), path)
    print(f"{folder}: {len(tensors)} tensors agree (h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version})")


if __name__ == "__main__":
    main()
