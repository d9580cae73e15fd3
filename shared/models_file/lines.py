"""On which line of a TOML text each key is. `tomllib` does not say."""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]


class Lines:
    """The line of each key of a text that `tomllib` reads. A statement of several lines counts as its first line."""

    def __init__(self, text: str) -> None:
        self._found: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}
        table: Path = ()
        for number, statement in _statements(text):
            document = tomllib.loads(statement)
            if statement.lstrip().startswith("["):
                table = self._header(document, number)
            else:
                for path in _paths(document):
                    self._found.setdefault((*table, *path), number)

    def of(self, path: Path) -> int:
        """Return the line of a key, or of the innermost table around it that is written; 1 if there is none."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found.get(path, 1)

    def _header(self, document: Mapping[str, Any], number: int) -> Path:
        """The path of the table that a header opens; each header of an array of tables opens the next one."""
        path: Path = ()
        value: Any = document
        while value:
            if isinstance(value, list):
                index = self._tables.get(path, 0)
                self._tables[path] = index + 1
                path, value = (*path, index), value[0]
            else:
                name, value = next(iter(value.items()))
                path = (*path, name)
                if value and isinstance(value, Mapping) and path in self._tables:
                    path = (*path, self._tables[path] - 1)
        for length in range(1, len(path) + 1):
            self._found.setdefault(path[:length], number)
        return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement with the number of its first line: the fewest lines that are TOML by themselves."""
    statement, first = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not statement and (not line.strip() or line.lstrip().startswith("#")):
            continue
        first = first if statement else number
        statement += line
        if _complete(statement):
            yield first, statement
            statement = ""


def _complete(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key below a value, outermost first."""
    if path:
        yield path
    if isinstance(value, Mapping | list):
        parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in parts:
            yield from _paths(part, (*path, name))
