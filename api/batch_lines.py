"""The lines of a batch: what comes in, what is done of it, what goes out. Plain files, appended to as answers come, so
that whoever goes on after a crash knows what is left."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LINES_MAX = 50_000
ERRORS_MAX = 20
FIELDS = {"custom_id", "method", "url", "body"}


class Line(NamedTuple):
    """`number` from 0, `body` as the endpoint would get it."""

    number: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """How many requests a file has, and what is wrong with it."""

    total: int
    errors: list[dict[str, Any]]


def check(path: Path, endpoint: str) -> Checked:
    """Read it all, remembering no more than the custom ids."""
    seen: set[str] = set()
    errors: list[dict[str, Any]] = []
    total = 0
    for number, raw in _rows(path):
        total += 1
        wrong = _wrong(raw, endpoint, seen)
        if wrong and len(errors) < ERRORS_MAX:
            code, message, param = wrong
            errors.append({"code": code, "line": number + 1, "message": message, "param": param})
    if total == 0:
        errors.append({"code": "empty_file", "line": None, "message": "The file has no requests.", "param": None})
    if total > LINES_MAX:
        message = f"The file has {total} requests; at most {LINES_MAX} are allowed."
        errors.append({"code": "too_many_requests", "line": None, "message": message, "param": None})
    return Checked(total, errors)


def lines(path: Path) -> Iterator[Line]:
    """Of a file that was checked."""
    for number, raw in _rows(path):
        found = json.loads(raw)
        yield Line(number, found["custom_id"], found["body"])


class Parts:
    """What is done so far: one row for each answer, with the number of its line before it."""

    def __init__(self, folder: Path, batch_id: str) -> None:
        self._paths = {True: folder / f"{batch_id}.output", False: folder / f"{batch_id}.errors"}
        folder.mkdir(parents=True, exist_ok=True)
        self.done = {good: self._recover(path) for good, path in self._paths.items()}
        self._out = {good: path.open("ab") for good, path in self._paths.items()}

    def add(self, number: int, row: dict[str, Any], *, good: bool) -> None:
        self._out[good].write(f"{number}\t{json.dumps(row, ensure_ascii=False)}\n".encode())
        self._out[good].flush()
        self.done[good].add(number)

    def assemble(self, path: Path, *, good: bool) -> bool:
        """Write one kind in the order of its lines, each once; False when there are none."""
        self._out[good].flush()
        os.fsync(self._out[good].fileno())
        places: dict[int, tuple[int, int]] = {}
        with self._paths[good].open("rb") as source:
            at = 0
            for row in source:
                number, _, rest = row.partition(b"\t")
                places.setdefault(int(number), (at + len(number) + 1, len(rest)))
                at += len(row)
            with path.open("wb") as out:
                for _, (begin, length) in sorted(places.items()):
                    source.seek(begin)
                    out.write(source.read(length))
        return bool(places)

    def close(self) -> None:
        for out in self._out.values():
            out.close()

    def remove(self) -> None:
        self.close()
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    @staticmethod
    def _recover(path: Path) -> set[int]:
        """Lines that are done; what was being written when a machine died is cut off."""
        done, whole = set[int](), 0
        if path.exists():
            with path.open("rb") as source:
                for row in source:
                    number, tab, _ = row.partition(b"\t")
                    if not row.endswith(b"\n") or not tab or not number.isdigit():
                        break
                    done.add(int(number))
                    whole += len(row)
            os.truncate(path, whole)
        return done


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with something on them, counted from 0."""
    with path.open("rb") as source:
        for number, raw in enumerate(source):
            if raw.strip():
                yield number, raw


def _wrong(raw: bytes, endpoint: str, seen: set[str]) -> tuple[str, str, str | None] | None:
    """Code, message and parameter of what is wrong with a line."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return "invalid_json_line", "This line is not valid JSON.", None
    if not isinstance(found, dict) or FIELDS - found.keys():
        return "missing_required_parameter", f"A line has {', '.join(sorted(FIELDS))}.", None
    if not isinstance(found["custom_id"], str) or not found["custom_id"]:
        return "invalid_custom_id", "'custom_id' is a text.", "custom_id"
    if found["custom_id"] in seen:
        return "duplicate_custom_id", f"The custom_id {found['custom_id']!r:.80} comes twice.", "custom_id"
    seen.add(found["custom_id"])
    if found["method"] != "POST":
        return "invalid_method", "'method' is POST.", "method"
    if found["url"] != endpoint:
        return "mismatched_endpoint", f"'url' is the batch's endpoint, {endpoint}.", "url"
    if not isinstance(found["body"], dict):
        return "invalid_body", "'body' is an object.", "body"
    return None
