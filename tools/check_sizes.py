"""Checks the size limits: files of 400 lines, functions of 70 lines, and a median function of 10 lines at most."""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_MAX, FUNCTION_MAX, MEDIAN_MAX = 400, 70, 10
SOURCES = ("shared", "api", "workers", "cli", "bench", "tools")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> int:
    paths = [path for folder in SOURCES for path in sorted(Path(folder).rglob("*.py"))]
    sizes = [found for path in paths for found in functions(path)]
    median = statistics.median(size for _, size in sizes)
    problems = [f"{name} has {size} lines, over {FUNCTION_MAX}" for name, size in sizes if size > FUNCTION_MAX]
    for path in paths:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_MAX:
            problems.append(f"{path} has {lines} lines, over {FILE_MAX}")
    if median > MEDIAN_MAX:
        problems.append(f"the median function has {median} lines, over {MEDIAN_MAX}")
    for problem in problems:
        print(problem)
    print(f"{len(paths)} files, {len(sizes)} functions, median {median} lines")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
