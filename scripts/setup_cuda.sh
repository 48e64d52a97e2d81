#!/usr/bin/env bash
# Fetches what the cuda preset compiles and links against, GPU or not: LibTorch's CUDA 13 build, NCCL and NVRTC as wheels,
# into .deps/libtorch-cuda and .deps/nvidia. nvcc comes with the CUDA toolkit. Exits 1 where they cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly VERSION="2.14.1"
command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || { echo "[setup-cuda] no nvcc: install the CUDA 13 toolkit" >&2; exit 1; }
[ "$(cat .deps/libtorch-cuda.version 2>/dev/null)" = "$VERSION" ] && { echo "[setup-cuda] present"; exit 0; }
unpack=.deps/unpack-cuda
rm -rf "$unpack" .deps/wheels-cuda
mkdir -p "$unpack" .deps/wheels-cuda
echo "[setup-cuda] fetching torch==$VERSION, NCCL, NVRTC and the CUDA libraries that LibTorch links (a few GB)"
python3 -m pip download -q --no-deps -d .deps/wheels-cuda "torch==$VERSION" nvidia-nccl-cu13 nvidia-cuda-nvrtc nvidia-cuda-runtime ||
  { echo "[setup-cuda] pip cannot download them" >&2; exit 1; }
for wheel in .deps/wheels-cuda/*.whl; do unzip -q -o "$wheel" -d "$unpack"; done
rm -rf .deps/libtorch-cuda .deps/nvidia .deps/wheels-cuda
mv "$unpack/torch" .deps/libtorch-cuda
mv "$unpack/nvidia" .deps/nvidia
rm -rf "$unpack"
echo "$VERSION" >.deps/libtorch-cuda.version
