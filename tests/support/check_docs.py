#!/usr/bin/env python3
"""Every path that README.md, CONTRIBUTING.md or docs/ names in `code` or a link must exist, and a code block below
<!-- PATH: NAME --> is what stands in PATH between "page: NAME" and "end of page". Only Python's standard library."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Made by a run or a fetch, not part of the checkout.
MADE = ("runs/", "models/", "build/", ".deps/", "data/", "stages/", "checkpoints/", "logs/", "tb/")
FIRST_PARTS = {"src", "tests", "scripts", "configs", "docs", "bench", "cmake", ".ci"}


def code_block_problems(page, text):
    for path, name, code in re.findall(r"^<!-- ([\w./-]+): (\w+) -->\n```\w*\n(.*?)^```$", text, re.M | re.S):
        source = ROOT / path
        regions = re.findall(rf"^[^\w\n]* page: {name}\n(.*?)^[^\w\n]* end of page$", source.read_text(), re.M | re.S) if source.exists() else []
        if regions != [code]:
            yield f"{page.relative_to(ROOT)}: the code block \"{name}\" is not what {path} has between page: {name} and end of page. Copy it over."


def main():
    problems = []
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        if not page.exists():
            problems.append(f"{page.relative_to(ROOT)} is missing")
            continue
        problems += code_block_problems(page, page.read_text())
        in_block = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            in_block ^= line.startswith("```")
            if in_block:
                continue
            names = [name for name in re.findall(r"`([\w./-]+)`", line) if name.split("/")[0] in FIRST_PARTS and "/" in name
                     and not re.search(r"[A-Z]{4,}/|/[A-Z]{4,}", name)]  # FOLDER, UNIT: placeholders
            links = [name for name in re.findall(r"\]\(([^)#\s]+)", line) if "://" not in name]
            for name in names:
                if not name.startswith(MADE) and not (ROOT / name).exists():
                    problems.append(f"{page.relative_to(ROOT)}:{number}: {name} does not exist")
            for name in links:
                if not (page.parent / name).exists():
                    problems.append(f"{page.relative_to(ROOT)}:{number}: link to {name} leads nowhere")
    print("\n".join(problems) or "[check] paths in README and docs exist, code blocks are as compiled")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
