#!/usr/bin/env bash
# From a fresh machine to a trained model: sets up, builds, teaches a new small model arithmetic by SFT and then by GRPO.
#   scripts/quickstart.sh [--section.key=value …]      further arguments go to `temper run`
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '[quickstart] %s\n' "$*"; }
say "1/3 set-up (packages and LibTorch; a few minutes the first time, nothing the second)"
scripts/setup.sh
say "2/3 build"
scripts/build.sh release temper
say "3/3 temper run configs/quickstart.toml: SFT on worked problems, then GRPO with the task's reward"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
code=0
build/release/temper run configs/quickstart.toml "$@" || code=$?
if [ "$code" = 75 ]; then say "stopped on request; run scripts/quickstart.sh again to continue"; exit 75; fi
if [ "$code" != 0 ]; then say "the run failed with exit code $code; the message above says why"; exit "$code"; fi
say "held-out accuracy, stage by stage:"
python3 - runs/quickstart/metrics.jsonl <<'PY'
import json, sys
best = {}
for line in open(sys.argv[1]):
    record = json.loads(line)
    for key, value in record.items():
        if key.startswith("eval/") and key.endswith("/accuracy"):
            best.setdefault((record["stage"], key), []).append((record["step"], value))
for (stage, key), points in best.items():
    first, last = points[0], points[-1]
    print(f"  {stage:6} {key:28} step {first[0]:4}: {first[1]:6.1%}   step {last[0]:4}: {last[1]:6.1%}")
PY
say "model: runs/quickstart/model (loads in transformers)   report: runs/quickstart/report.html"
