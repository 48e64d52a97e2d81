#!/usr/bin/env python3
"""Every path that README.md, CONTRIBUTING.md or docs/ names in `code` or a link must exist, a code block below
<!-- PATH: NAME --> is what stands in PATH between "page: NAME" and "end of page", and docs/operations.md knows every exit code and
quotes messages that the sources have. Only Python's standard library."""
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


def messages_of_sources():
    """Sources and scripts with the pieces of each string put together and a hole, {} or $NAME, as a line break."""
    text = "\n".join(path.read_text() for folder, pattern in (("src", "*.cpp"), ("src", "*.h"), ("scripts", "*.sh"), ("scripts", "*.sbatch"))
                     for path in sorted((ROOT / folder).rglob(pattern)))
    text = re.sub(r'(?<!\\)"\s*\n\s*"', "", text).replace('\\"', '"')
    return re.sub(r"\{\}|\$\(\(.*?\)\)+|\$\{?\w+\}?", "\n", text)


def operations_problems():
    page = ROOT / "docs" / "operations.md"
    text, sources = page.read_text(), messages_of_sources()
    codes = {int(code) for code in re.findall(r"^  k\w+ = (\d+),", (ROOT / "src/core/error.h").read_text(), re.M)} | {1}
    table = text[text.index("## Exit codes") : text.index("## Failures")]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    if listed != codes:
        yield f"docs/operations.md lists the exit codes {sorted(listed)}, src/core/error.h has {sorted(codes)}"
    rows = re.findall(r"^\| `(.+?)` \| ([^|]*) \|", text[text.index("## Failures") :], re.M)
    if len(rows) < 20:
        yield f"docs/operations.md: {len(rows)} messages found; are the tables as they were?"
    for message, code in rows:
        for used in re.findall(r"\d+", code):
            if int(used) not in codes:
                yield f"docs/operations.md: \"{message}\": there is no exit code {used}"
        for piece in message.split("…"):
            if len(piece.strip(" .,:;()")) > 2 and piece.rstrip() not in sources:
                yield f"docs/operations.md quotes \"{message}\", but \"{piece}\" is nowhere in src/ or scripts/"


def main():
    problems = list(operations_problems())
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
    print("\n".join(problems) or "[check] paths in README and docs exist, code blocks are as compiled, quoted messages are in the sources")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
