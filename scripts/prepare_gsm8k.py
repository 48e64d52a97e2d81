#!/usr/bin/env python3
"""Splits a GSM8K file (JSONL with question and answer) into training and held-out data for Temper.

  scripts/prepare_gsm8k.py INPUT.jsonl OUTDIR [NUM_HELD_OUT=500]

Writes OUTDIR/train.jsonl and OUTDIR/gsm8k_heldout.jsonl. A line has
  prompt      the question
  completion  the worked solution without calculator annotations (<<48/2=24>>), ending in "#### 72": what SFT learns
  answer      the number after "####" without thousands separators: what rewards compare with
The held-out lines are those whose question has the smallest SHA-256: the same ones whatever the order of the input; questions
that occur more than once stay together. Needs nothing but Python 3.
"""

import hashlib
import json
import os
import re
import sys


def fail(message):
    sys.exit(f"prepare_gsm8k: error: {message}")


def convert(line, number, path):
    try:
        row = json.loads(line)
        question, solution = row["question"], row["answer"]
    except (ValueError, KeyError, TypeError):
        fail(f"{path}:{number}: not a JSON object with the fields question and answer. Give the GSM8K train.jsonl.")
    solution = re.sub(r"<<[^>]*>>", "", solution).strip()
    head, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        fail(f"{path}:{number}: the answer does not end in '#### NUMBER'. Give the GSM8K train.jsonl.")
    answer = answer.strip().replace(",", "")
    return {"prompt": question.strip(), "completion": f"{head.strip()}\n#### {answer}", "answer": answer}


def write(path, rows):
    with open(path + ".partial", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(path + ".partial", path)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.strip())
    path, directory = sys.argv[1], sys.argv[2]
    num_held_out = int(sys.argv[3]) if len(sys.argv) == 4 else 500
    try:
        with open(path, encoding="utf-8-sig") as source:
            rows = [convert(line, number, path) for number, line in enumerate(source, 1)]
    except OSError as error:
        fail(f"{path}: {error.strerror}. Give the path of the GSM8K train.jsonl.")
    if len(rows) <= num_held_out:
        fail(f"{path}: {len(rows)} lines are too few to hold out {num_held_out}.")

    def key(row):
        return hashlib.sha256(row["prompt"].encode()).hexdigest()

    border = sorted(map(key, rows))[num_held_out]
    os.makedirs(directory, exist_ok=True)
    held_out = [row for row in rows if key(row) < border]
    train = [row for row in rows if key(row) >= border]
    write(f"{directory}/train.jsonl", train)
    write(f"{directory}/gsm8k_heldout.jsonl", held_out)
    print(f"{directory}: {len(train)} training lines, {len(held_out)} held out")


if __name__ == "__main__":
    main()
