#!/usr/bin/env python3
"""Checks who includes whom under src/: the table of docs/architecture.md, and which third-party headers may stand where.
Only Python's standard library. Exit code 1 and one line for each include that breaks a rule."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALL = {"core", "config", "data", "comm", "algos", "model", "checkpoint", "rollout", "trainer", "observe", "apps"}
MAY_INCLUDE = {
    "core": set(),
    "config": {"core"},
    "data": {"core", "config"},
    "comm": {"core", "config"},
    "algos": {"core", "config"},
    "model": {"core", "config", "comm/communicator.h"},
    "checkpoint": {"core", "config", "comm/communicator.h"},
    "rollout": {"core", "config", "data", "comm", "model"},
    "trainer": {"core", "config", "data", "comm", "model", "algos", "checkpoint"},
    "observe": {"core", "config"},
    "apps": ALL,
}
WITHOUT_TORCH = {"core", "config", "data", "observe"}
TORCH = re.compile(r"^(torch|ATen|c10)/")
# header pattern -> (folders, in .cpp only)
THIRD_PARTY = [
    (re.compile(r"^spdlog/"), {"core"}),
    (re.compile(r"^(toml\+\+|toml)"), {"config"}),
    (re.compile(r"^cxxopts"), {"config", "apps"}),
    (re.compile(r"^(hdf5|H5)"), {"checkpoint"}),
    (re.compile(r"^httplib"), {"apps"}),
    (re.compile(r"^muParser"), {"rollout"}),
    (re.compile(r"^prometheus/"), {"observe"}),
    (re.compile(r"^(mpi|nccl|zmq)"), {"comm"}),
    (re.compile(r"^(nlohmann/(?!json_fwd)|xxhash|zstd|pcre2)"), ALL),
]


def types_declared_twice():
    """One flat namespace: two headers with a type of one name would be one type to the linker, silently."""
    seen = {}
    for path in sorted((ROOT / "src").rglob("*.h")):
        for name in re.findall(r"^(?:struct|class|enum class) (\w+)(?=[^;]*\{)", path.read_text(), re.MULTILINE):
            seen.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return [f"{' and '.join(places)} both define {name}" for name, places in seen.items() if len(places) > 1]


def main():
    problems = types_declared_twice()
    for path in sorted((ROOT / "src").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".inc"}:
            continue
        relative = path.relative_to(ROOT / "src")
        folder = relative.parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
            if not found:
                continue
            header = found.group(1)
            place = f"src/{relative}:{number}: includes {header}"
            target = header.split("/")[0]
            if target in ALL and (ROOT / "src" / header).exists():
                if target != folder and target not in MAY_INCLUDE[folder] and header not in MAY_INCLUDE[folder]:
                    problems.append(f"{place}, but {folder} may include only {sorted(MAY_INCLUDE[folder]) or 'itself'}")
                continue
            if TORCH.match(header) and folder in WITHOUT_TORCH:
                problems.append(f"{place}, but {folder} must not see LibTorch")
            for pattern, folders in THIRD_PARTY:
                if not pattern.match(header):
                    continue
                if folder not in folders:
                    problems.append(f"{place}, which belongs to {sorted(folders)} alone")
                elif path.suffix == ".h":
                    problems.append(f"{place}, which may stand in .cpp files only")
    print("\n".join(problems) or "[check] include layers are as docs/architecture.md says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
