#!/usr/bin/env bash
# Runs as dependent jobs: each starts when the one before has finished, and finds its model where that left it
# (model.path = "runs/NAME/model" in the later configuration). Several stages in one file need no such script: they are one job.
#   scripts/slurm/pipeline.sh [sbatch options] -- CONFIG CONFIG …
# Prints one job number a line. A job that fails cancels those that wait for it.
set -euo pipefail
readonly HERE="$(cd "$(dirname "$0")" && pwd)"
fail() { printf '[pipeline] error: %s\n' "$*" >&2; exit 2; }

options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do options+=("$1"); shift; done
[ "${1:-}" = "--" ] || fail "no -- before the configurations: pipeline.sh [sbatch options] -- CONFIG CONFIG …"
shift
[ $# -ge 1 ] || fail "no configuration given behind --."
command -v sbatch >/dev/null || fail "no sbatch here: run it on a machine of the cluster."
for config in "$@"; do [ -f "$config" ] || fail "$config: no such file."; done
before=""
for config in "$@"; do
  job="$(sbatch --parsable "${options[@]}" ${before:+--dependency=afterok:$before --kill-on-invalid-dep=yes} "$HERE/train.sbatch" "$config")"
  before="${job%%;*}"
  echo "$before"
done
