#!/usr/bin/env bash
# What is too long for every change: tsan on the torch-free folders, asan on comm and algos, crash points, flipped bits and random kills
# of checkpoints, the libFuzzer targets, the cuda build with its tests (needs no GPU), tests labelled gpu where a GPU is, jobs on a real
# Slurm of four nodes (needs root), 200 faults of rollout workers, Kubernetes manifests, tokenizer and transformers parity and the openai
# client on the real model, the quickstart. Each part says whether it ran; record the result with its date in docs/reliability.md.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
declare -a summary
part() {  # part NAME COMMAND…
  local name="$1"; shift
  printf '\n[nightly] %s\n' "$name"
  if "$@"; then summary+=("passed   $name"); else summary+=("FAILED   $name"); failed=1; fi
}
not_run() { summary+=("not run  $1 ($2)"); }

scripts/setup.sh --python || exit 1
part "release build and all tests" scripts/test.sh

tsan() { scripts/build.sh tsan && ctest --test-dir build/tsan --output-on-failure -R '^(core|config|data|observe)\.'; }
part "tsan: core, config, data, observe" tsan

asan() { scripts/build.sh asan comm_test algos_test && ctest --test-dir build/asan --output-on-failure -R '^(comm|algos)\.' -LE mpi; }
part "asan and ubsan: comm, algos" asan

crash_points() { TEMPER_CRASH_SEEDS=50 build/release/tests/checkpoint_test --gtest_filter='CrashPoints*'; }
part "crash points of a save by four ranks, 50 orders of their calls" crash_points
part "a million flipped bits of a checkpoint" build/release/temper bench checkpoint --flips=1000000 --dir=/dev/shm
part "a hundred random kills, resumed bit for bit" python3 -B tests/e2e/random_kills.py build/release/temper --kills=100

fuzz() {  # fuzz TARGET: what it finds anew goes to build/fuzz/corpus
  mkdir -p "build/fuzz/corpus/$1"
  build/fuzz/tests/fuzz/"fuzz_$1" -max_total_time=600 -timeout=10 -rss_limit_mb=2048 "build/fuzz/corpus/$1" "tests/fuzz/corpus/$1"
}
if scripts/setup.sh --fuzz; then
  part "libFuzzer targets" scripts/build.sh fuzz fuzzers
  for source in tests/fuzz/*_fuzz.cpp; do
    target=$(basename "$source" _fuzz.cpp)
    part "fuzz: $target for 10 minutes" fuzz "$target"
  done
else
  not_run "fuzzing" "clang cannot be had"
fi

cuda_packages() { scripts/setup_cuda.sh; }
if cuda_packages; then
  part "cuda build" scripts/build.sh cuda temper gpu_test comm_nccl_test comm_nccl_weights_test
else
  not_run "cuda build" "its packages cannot be had"
fi
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  part "tests labelled gpu" ctest --test-dir build/cuda -L gpu --output-on-failure --no-tests=error
else
  not_run "tests labelled gpu" "no GPU"
fi

slurm() {
  scripts/slurm/mini_cluster.sh up && cmake -DTEMPER_SLURM_TESTS=ON build/release >/dev/null &&
    ctest --test-dir build/release -L slurm --output-on-failure --no-tests=error
  local code=$?
  scripts/slurm/mini_cluster.sh down
  cmake -DTEMPER_SLURM_TESTS=OFF build/release >/dev/null
  return "$code"
}
# Tables for docs/reliability.md: seconds lost per kind of fault, then 20 minutes with a fault every ten steps.
slurm_faults() {
  scripts/slurm/mini_cluster.sh up && bench/slurm_faults.py table && bench/slurm_faults.py mixed
  local code=$?
  scripts/slurm/mini_cluster.sh down
  return "$code"
}
if [ "$(id -u)" != 0 ]; then not_run "jobs on Slurm" "needs root"
elif [ -e /etc/slurm/slurm.conf ] && ! grep -q mini_cluster.sh /etc/slurm/slurm.conf; then not_run "jobs on Slurm" "this machine belongs to a cluster"
else
  part "jobs on Slurm" slurm
  part "faults on Slurm" slurm_faults
fi
part "from kill -9 of a rank to the next step" bench/restart_time.py

part "200 faults of rollout workers" python3 -B tests/e2e/worker_faults.py build/release/temper
part "Kubernetes manifests by their schema" scripts/check_manifests.sh
part "fetch SmolLM2-135M-Instruct" scripts/fetch_smollm2.sh
part "tokenizer parity on the real model" .deps/python/bin/python tests/support/compare_tokenizer.py
part "transformers parity" .deps/python/bin/python tests/support/compare_transformers.py --temper build/release/temper --model models/SmolLM2-135M-Instruct
part "temper serve with the openai client" .deps/python/bin/python tests/support/openai_client.py --temper build/release/temper --model models/SmolLM2-135M-Instruct
part "quickstart" scripts/quickstart.sh --checkpoint.resume=never

printf '\n[nightly] summary\n'
printf '  %s\n' "${summary[@]}"
exit "$failed"
