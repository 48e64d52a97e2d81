#!/usr/bin/env bash
# Everything that must hold before a change lands: set-up, format and layers, release build, all tests, and asan+ubsan on the
# torch-free and checkpoint folders. Takes its own set-up from a fresh machine; ctest's summary of the release build comes last.
#   scripts/test.sh [--quick]      --quick leaves the sanitizers out
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '[test] %s\n' "$*"; }
# Threads that wait leave the cores to the tests beside them: spinning ones made some tests take a hundred times as long.
export OMP_WAIT_POLICY=passive
scripts/setup.sh
scripts/check.sh
say "release build"
scripts/build.sh release
if [ "${1:-}" != "--quick" ]; then
  say "asan and ubsan on core, config, data, observe, checkpoint"
  scripts/build.sh asan core_test config_test data_test observe_test checkpoint_test
  # LibTorch is not instrumented: leaks at its exit and its container layout are not ours.
  export ASAN_OPTIONS=detect_leaks=1:detect_container_overflow=0 LSAN_OPTIONS=suppressions=$PWD/tests/support/lsan.supp
  ctest --test-dir build/asan --output-on-failure -j 2 -R '^(core|config|data|observe|checkpoint)\.' || {
    say "error: a sanitizer found something; see above"
    exit 1
  }
fi
say "all tests of the release build"
ctest --test-dir build/release --output-on-failure -j 2 -LE 'gpu|slurm'
