#!/usr/bin/env bash
# Builds the program and its tests in build/PRESET.
#   scripts/build.sh [PRESET] [TARGET…]     PRESET: release (default), dev, asan, tsan, cuda
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${1:-release}"
shift || true
if [ -n "${TEMPER_TORCH:-}" ]; then set_torch=(-DTEMPER_TORCH="$TEMPER_TORCH"); else set_torch=(); fi
export CCACHE_DIR="${CCACHE_DIR:-$PWD/.deps/ccache}" CCACHE_SLOPPINESS=pch_defines,time_macros
printf '[build] preset %s in build/%s\n' "$preset" "$preset"
cmake --preset "$preset" "${set_torch[@]}" >"build-$preset.log" 2>&1 || {
  cat "build-$preset.log"
  printf '[build] error: configuring failed; see above. Run scripts/setup.sh first if a package is missing.\n' >&2
  exit 1
}
rm -f "build-$preset.log"
if [ $# -gt 0 ]; then targets=(--target "$@"); else targets=(); fi
start=$SECONDS
cmake --build "build/$preset" "${targets[@]}" || {
  printf '[build] error: compiling failed; see above.\n' >&2
  exit 1
}
printf '[build] done in %d s\n' $((SECONDS - start))
