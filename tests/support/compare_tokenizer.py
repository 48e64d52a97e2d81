"""Compares the ids of the program's tokenizer with those of Hugging Face `tokenizers` for a model directory, on mixed generated
text and on the English and the code of Python's standard library.

  .deps/python/bin/python tests/support/compare_tokenizer.py [MODEL_DIR] [DATA_TEST]
      default: models/SmolLM2-135M-Instruct and build/release/tests/data_test
Prints lines compared, lines equal and MB a second of processor time of one thread.
"""

import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile

import xxhash
from tokenizers import Tokenizer

from mixed_texts import mixed_texts

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def natural_texts(num_paragraphs):
    import pydoc_data.topics

    paragraphs = [p for text in pydoc_data.topics.topics.values() for p in text.split("\n\n")]
    for path in sorted(glob.glob(os.path.join(sysconfig.get_path("stdlib"), "*.py"))):
        with open(path, encoding="utf-8", errors="replace") as source:
            paragraphs += source.read().split("\n\n")
    return [p for p in paragraphs if p][:num_paragraphs]


def compare(model, data_test, name, texts):
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    with tempfile.TemporaryDirectory() as directory:
        target = f"{directory}/{name}"
        os.makedirs(target)
        for file in glob.glob(f"{model}/*.json"):
            shutil.copy(file, target)
        with open(f"{target}/texts.jsonl", "w", encoding="utf-8") as out:
            out.writelines(json.dumps(text) + "\n" for text in texts)
        with open(f"{target}/ids.txt", "w", encoding="utf-8") as out:
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                ids = encoding.ids
                out.write(f"{xxhash.xxh3_64_intdigest(struct.pack(f'<{len(ids)}i', *ids)) & 0xFFFFFFFF:08x}\n")
        test = subprocess.run([data_test, "--gtest_filter=TokenizerParity.*"], env={**os.environ, "TEMPER_TOKENIZER_FIXTURE": target},
                              capture_output=True, text=True)
    print("\n".join(line for line in test.stdout.splitlines() if "compared" in line or line.startswith("line ")))
    return test.returncode


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else f"{ROOT}/models/SmolLM2-135M-Instruct"
    data_test = sys.argv[2] if len(sys.argv) > 2 else f"{ROOT}/build/release/tests/data_test"
    failed = compare(model, data_test, "mixed", mixed_texts(40_000, seed=3))
    failed |= compare(model, data_test, "natural", natural_texts(30_000))
    sys.exit(failed)


if __name__ == "__main__":
    main()
