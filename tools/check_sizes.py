"""Checks the size limits: files of 400 lines, functions of 70 lines, and a median function of 10 lines at most. Tests and
Lua count as well, except that the median is that of the sources alone."""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_MAX, FUNCTION_MAX, MEDIAN_MAX = 400, 70, 10
SOURCES = ("penstock", "shared", "api", "workers", "cli", "bench", "tools")
LUA_FUNCTION = re.compile(
    r"^(?P<indent> *)(?:local )?function (?P<name>[\w.]+)[^\n]*(?:(?<=\bend)|\n(?:.*\n)*?(?P=indent)end\b)",
    re.MULTILINE,
)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".lua":
        for match in LUA_FUNCTION.finditer(text):
            yield f"{path}:{text.count(chr(10), 0, match.start()) + 1} {match['name']}", match[0].count("\n") + 1
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def found(folders: tuple[str, ...]) -> list[Path]:
    every = [path for folder in folders for kind in ("py", "lua") for path in sorted(Path(folder).rglob(f"*.{kind}"))]
    return [path for path in every if "node_modules" not in path.parts]  # what npm has installed for tests/clients


def main() -> int:
    paths, tests = found(SOURCES), found(("tests",))
    sizes = [each for path in paths for each in functions(path)]
    median = statistics.median(size for _, size in sizes)
    all_sizes = [*sizes, *[each for path in tests for each in functions(path)]]
    problems = [f"{name} has {size} lines, over {FUNCTION_MAX}" for name, size in all_sizes if size > FUNCTION_MAX]
    for path in [*paths, *tests]:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_MAX:
            problems.append(f"{path} has {lines} lines, over {FILE_MAX}")
    if median > MEDIAN_MAX:
        problems.append(f"the median function has {median} lines, over {MEDIAN_MAX}")
    for problem in problems:
        print(problem)
    print(f"{len(paths)} files and {len(tests)} of tests, {len(all_sizes)} functions, median {median} lines")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
