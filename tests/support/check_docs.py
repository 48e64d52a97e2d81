#!/usr/bin/env python3
"""Every path that README.md, CONTRIBUTING.md or docs/ names in `code` or a link must exist. Only Python's standard library."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Made by a run or a fetch, not part of the checkout.
MADE = ("runs/", "models/", "build/", ".deps/", "data/", "stages/", "checkpoints/", "logs/", "tb/")
FIRST_PARTS = {"src", "tests", "scripts", "configs", "docs", "bench", "cmake", ".ci"}


def main():
    problems = []
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        if not page.exists():
            problems.append(f"{page.relative_to(ROOT)} is missing")
            continue
        for number, line in enumerate(page.read_text().splitlines(), 1):
            names = [name for name in re.findall(r"`([\w./-]+)`", line) if name.split("/")[0] in FIRST_PARTS and "/" in name
                     and not re.search(r"[A-Z]{4,}/|/[A-Z]{4,}", name)]  # FOLDER, UNIT: placeholders
            links = [name for name in re.findall(r"\]\(([^)#\s]+)", line) if "://" not in name]
            for name in names:
                if not name.startswith(MADE) and not (ROOT / name).exists():
                    problems.append(f"{page.relative_to(ROOT)}:{number}: {name} does not exist")
            for name in links:
                if not (page.parent / name).exists():
                    problems.append(f"{page.relative_to(ROOT)}:{number}: link to {name} leads nowhere")
    print("\n".join(problems) or "[check] paths in README and docs exist")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
