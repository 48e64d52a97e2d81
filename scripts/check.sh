#!/usr/bin/env bash
# What a push needs: formatting, include layers, README and docs paths. Lists long files (a question to ask, not a failure).
#   scripts/check.sh [--fix] [--tests]     --fix formats in place; --tests also runs the unit tests of the release build
set -euo pipefail
cd "$(dirname "$0")/.."
fix="" tests=""
for argument in "$@"; do
  case "$argument" in
    --fix) fix=1 ;;
    --tests) tests=1 ;;
    *) printf '[check] error: unknown argument %s (known: --fix, --tests)\n' "$argument" >&2; exit 2 ;;
  esac
done
say() { printf '[check] %s\n' "$*"; }
format_tool=".deps/format/bin/clang-format"
if [ ! -x "$format_tool" ]; then
  say "installing clang-format $(cat .clang-format-version)"
  python3 -m venv .deps/format && .deps/format/bin/pip install -q "clang-format==$(cat .clang-format-version)" ||
    { say "error: pip cannot install clang-format. Check the network."; exit 1; }
fi
mapfile -t sources < <(git ls-files --cached --others --exclude-standard 'src/*.h' 'src/*.cpp' 'src/*.inc' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp' 'bench/*.h')
if [ -n "$fix" ]; then
  "$format_tool" -i "${sources[@]}"
elif ! "$format_tool" --dry-run --Werror "${sources[@]}" 2>.deps/format.log; then
  head -20 .deps/format.log
  say "error: not formatted. Run scripts/check.sh --fix."
  exit 1
fi
python3 tests/support/check_layers.py
python3 tests/support/check_docs.py
git ls-files 'src/*' | xargs wc -l | awk '$2 != "total" && $1 > 500 {print "[check] long file: " $2 " (" $1 " lines)"}'
for folder in src/*/; do
  count=$(find "$folder" -name '*.cpp' | wc -l)
  [ "$count" -le 16 ] || say "large folder: $folder ($count sources)"
done
say "format, layers and paths are fine"
if [ -n "$tests" ]; then ctest --test-dir build/release -L unit -j 2 --output-on-failure; fi
