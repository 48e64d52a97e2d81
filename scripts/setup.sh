#!/usr/bin/env bash
# Installs what Temper needs on Debian 12 (or a near relative) and is missing. Repeatable, asks nothing.
#   scripts/setup.sh            build and test dependencies, and LibTorch (CPU build; the CUDA build where an NVIDIA GPU is)
#   scripts/setup.sh --python   also the Python packages that only benches, fixtures and fetch_smollm2.sh use (in .deps/python)
#   scripts/setup.sh --fuzz     also clang with libFuzzer, for the targets of tests/fuzz
#   scripts/setup.sh --slurm    also Slurm's daemons, which scripts/slurm/mini_cluster.sh starts
#   scripts/setup.sh --peers    also llama.cpp for bench/compare_rollout.py, compiled for this machine (minutes)
# Where things go: system packages by apt; LibTorch in .deps/libtorch (or give TEMPER_TORCH=DIR, an existing one).
set -euo pipefail
cd "$(dirname "$0")/.."
readonly TORCH_CPU_VERSION="2.13.0+cpu" TORCH_CUDA_VERSION="2.14.1"
readonly TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
readonly LLAMA_CPP_VERSION="0.3.36"
readonly DEPS="$PWD/.deps"

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "installing packages needs root or sudo. Ask an administrator to run scripts/setup.sh once."; fi
}

apt_packages() {
  local wanted=(build-essential cmake ninja-build ccache mold pkg-config git ca-certificates unzip
    python3 python3-pip python3-venv
    libopenmpi-dev openmpi-bin libhdf5-dev libspdlog-dev libcxxopts-dev libtomlplusplus-dev nlohmann-json3-dev
    libpcre2-dev libmuparser-dev libutf8proc-dev libxxhash-dev libzstd-dev libzmq3-dev libcpp-httplib-dev prometheus-cpp-dev libgtest-dev
    libgmock-dev libnuma1 bubblewrap)
  [ "${1:-}" != "--slurm" ] || wanted+=(slurm-wlm slurmd slurmctld slurm-client munge libpmix-dev)
  install_missing "${wanted[@]}"
  [ "${1:-}" != "--fuzz" ] || fuzzing_packages
}

fuzzing_packages() {  # the runtime libraries have the compiler's version in their name
  install_missing clang
  install_missing "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
}

install_missing() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} = 0 ]; then say "system packages: all present"; return; fi
  command -v apt-get >/dev/null || fail "no apt-get here. Install the equivalents of: ${missing[*]}"
  say "installing ${#missing[@]} system packages: ${missing[*]}"
  as_root apt-get update -qq || fail "apt-get update failed. Check the network and /etc/apt/sources.list."
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get install failed for: ${missing[*]}"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# A wheel is a zip archive: unpacking it is all that a C++ program needs, no Python environment.
libtorch() {
  if [ -n "${TEMPER_TORCH:-}" ]; then
    [ -f "$TEMPER_TORCH/share/cmake/Torch/TorchConfig.cmake" ] ||
      fail "TEMPER_TORCH=$TEMPER_TORCH holds no share/cmake/Torch/TorchConfig.cmake. Point it at a LibTorch folder or unset it."
    say "LibTorch: $TEMPER_TORCH (given)"; return
  fi
  local requirement="torch==$TORCH_CPU_VERSION"
  has_gpu && requirement="torch==$TORCH_CUDA_VERSION"
  if [ "$(cat "$DEPS/libtorch.version" 2>/dev/null)" = "$requirement" ]; then say "LibTorch: $requirement, present"; return; fi
  say "LibTorch: fetching $requirement"
  local wheels="$DEPS/wheels"; mkdir -p "$wheels"
  if has_gpu; then  # with the CUDA libraries that it loads
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] ||
      fail "a GPU, but no nvcc: install the CUDA 13 toolkit, or give a CPU build of LibTorch with TEMPER_TORCH=DIR."
    python3 -m pip download -q -d "$wheels" "$requirement" ||
      fail "pip cannot download $requirement. Check the network, or give an unpacked LibTorch with TEMPER_TORCH=DIR."
  else
    python3 -m pip download -q --no-deps -d "$wheels" "$requirement" 2>/dev/null ||
      python3 -m pip download -q --no-deps -d "$wheels" --index-url "$TORCH_CPU_INDEX" "$requirement" ||
      fail "pip cannot download $requirement. Check the network, or give an unpacked LibTorch with TEMPER_TORCH=DIR."
  fi
  rm -rf "$DEPS/libtorch" "$DEPS/unpack"; mkdir -p "$DEPS/unpack"
  local wheel
  for wheel in "$wheels"/torch-*.whl "$wheels"/nvidia_*.whl; do
    [ -e "$wheel" ] || continue
    unzip -q -o "$wheel" -d "$DEPS/unpack" || fail "$wheel is not a whole wheel. Remove .deps/wheels and run again."
  done
  mv "$DEPS/unpack/torch" "$DEPS/libtorch"
  if [ -d "$DEPS/unpack/nvidia" ]; then rm -rf "$DEPS/nvidia"; mv "$DEPS/unpack/nvidia" "$DEPS/nvidia"; fi
  rm -rf "$DEPS/unpack" "$wheels"
  echo "$requirement" > "$DEPS/libtorch.version"
}

python_packages() {
  if [ -f "$DEPS/python.ready" ] && cmp -s scripts/requirements.txt "$DEPS/python.ready"; then say "Python packages: present"; return; fi
  say "Python packages for benches and fixtures: installing into .deps/python"
  python3 -m venv "$DEPS/python" || fail "python3 -m venv failed; is python3-venv installed?"
  local pip="$DEPS/python/bin/pip"
  "$pip" install -q "torch==$TORCH_CPU_VERSION" 2>/dev/null || "$pip" install -q --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_CPU_VERSION" ||
    fail "pip cannot install torch==$TORCH_CPU_VERSION"
  grep -v '^#' scripts/requirements.txt | grep -v -- '--no-deps' | "$pip" install -q -r /dev/stdin || fail "pip install failed; see above"
  cp scripts/requirements.txt "$DEPS/python.ready"
}

# Compiled here with the instructions that this machine has; the wheel's own build would leave some of them unused.
llama_cpp() {
  if "$DEPS/python/bin/python" -c "import llama_cpp, sys; sys.exit(llama_cpp.__version__ != '$LLAMA_CPP_VERSION')" 2>/dev/null; then
    say "llama.cpp: $LLAMA_CPP_VERSION, present"; return
  fi
  say "llama.cpp for bench/compare_rollout.py: compiling llama-cpp-python $LLAMA_CPP_VERSION"
  CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF" \
    CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" \
    "$DEPS/python/bin/pip" install -q --no-binary llama-cpp-python "llama-cpp-python==$LLAMA_CPP_VERSION" ||
    fail "pip cannot build llama-cpp-python==$LLAMA_CPP_VERSION; see above"
}

mkdir -p "$DEPS"
apt_packages "${1:-}"
libtorch
case "${1:-}" in --python | --peers) python_packages ;; esac
[ "${1:-}" != "--peers" ] || llama_cpp
say "ready"
