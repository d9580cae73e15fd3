"""The files of a batch: its input, its partial results and its results. Partial results are plain files, appended to as
answers come, so that a successor after a crash knows which lines are left. All calls block, so they need threads."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import orjson

LINES_MAX = 50_000
ERRORS_MAX = 20
PIECE = 1 << 20
FIELDS = {"custom_id", "method", "url", "body"}
SUFFIXES = {True: ".output", False: ".errors"}


class LineError(NamedTuple):
    """The error of a line. `param` is the field at fault, if there is one."""

    code: str
    message: str
    param: str | None = None


class BatchLine(NamedTuple):
    """A line of the input. `number` counts from 0, `body` is the endpoint's request body, `size` is in bytes. An
    invalid line has only its number and the error (`wrong`)."""

    number: int
    custom_id: str | None
    body: dict[str, Any]
    size: int = 0
    wrong: LineError | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """The number of requests in a file, and its errors."""

    total: int
    errors: list[dict[str, Any]]


def check(path: Path, endpoint: str, *, line_bytes_max: int) -> Checked:
    """Check a file, keeping only digests of the custom ids in memory, and stop once it has too many errors."""
    seen: set[bytes] = set()
    errors: list[dict[str, Any]] = []
    total = 0
    for line in lines(path, endpoint, line_bytes_max=line_bytes_max):
        total += 1
        if wrong := line.wrong or _repeated(line, seen):
            errors.append(error_of(wrong, line.number + 1))
        if total > LINES_MAX:
            errors.append(error_of(LineError("too_many_requests", f"The file has more than {LINES_MAX} requests.")))
        if total > LINES_MAX or len(errors) >= ERRORS_MAX:
            break
    if total == 0:
        errors.append(error_of(LineError("empty_file", "The file has no requests.")))
    return Checked(total, errors)


def lines(
    path: Path, endpoint: str, *, line_bytes_max: int, done: Collection[int] = frozenset()
) -> Iterator[BatchLine]:
    """Yield the lines that are not done. A line longer than `line_bytes_max` is never completely in memory. Raises
    FileNotFoundError."""
    too_long = LineError("request_too_large", f"This line is longer than {line_bytes_max} bytes.")
    for number, raw in _rows(path, line_bytes_max):
        if number in done:
            continue
        yield _parsed(number, raw, endpoint) if raw is not None else BatchLine(number, None, {}, wrong=too_long)


class PartialResults:
    """The results so far: one row for each answer, behind the number of its line.

    Each lease of a batch (`tenure`) appends to files of its own. It reads the files of earlier leases up to their
    length at its beginning, so that a process that writes after it lost its lease does no harm.
    """

    def __init__(self, folder: Path, batch_id: str, tenure: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._batch_id = batch_id
        self._mine = {good: folder / f"{batch_id}.{tenure}{suffix}" for good, suffix in SUFFIXES.items()}
        self._sources: dict[bool, dict[Path, int]] = {True: {}, False: {}}
        self._out: dict[bool, BinaryIO] = {}
        self._lock = Lock()  # a thread goes on when the task that waits for it is cancelled
        self._closed = False
        self.done: dict[bool, set[int]] = {True: set(), False: set()}
        for good, suffix in SUFFIXES.items():
            for path in sorted(folder.glob(f"{batch_id}*{suffix}")):
                self._recover(path, good=good)

    def add(self, rows: Collection[tuple[int, dict[str, Any]]], *, good: bool) -> None:
        written = b"".join(f"{number}\t{json.dumps(row, ensure_ascii=False)}\n".encode() for number, row in rows)
        with self._lock:
            if self._closed:
                return
            if good not in self._out:
                self._out[good] = self._mine[good].open("ab")
            self._out[good].write(written)
            self._out[good].flush()
            self.done[good].update(number for number, _ in rows)

    def assemble(self, path: Path, *, good: bool) -> int:
        """Write the answers (`good`) or the errors in the order of their lines, each line once; return the number of
        bytes. A line that has an answer is in no error file."""
        with self._lock, ExitStack() as opened, path.open("wb") as out:
            places: dict[int, tuple[BinaryIO, int, int]] = {}
            for each, whole in self._all_sources(good).items():
                source: BinaryIO = opened.enter_context(each.open("rb"))
                for number, begin, length in _places(source, whole):
                    places.setdefault(number, (source, begin, length))
            for number in sorted(places.keys() - (set() if good else self.done[True])):
                source, begin, length = places[number]
                source.seek(begin)
                out.write(source.read(length))
            out.flush()
            os.fsync(out.fileno())
            return out.tell()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for out in self._out.values():
                out.close()

    def remove(self, *, keep: Collection[Path]) -> None:
        """Remove every file that any lease has written for this batch, except its results."""
        self.close()
        for path in self._folder.glob(f"*{self._batch_id}*"):
            if path not in keep:
                path.unlink(missing_ok=True)

    def _all_sources(self, good: bool) -> dict[Path, int]:
        mine = {self._mine[good]: self._out[good].tell()} if good in self._out else {}
        return self._sources[good] | mine

    def _recover(self, path: Path, *, good: bool) -> None:
        """Read the rows of an earlier lease, without one that was cut off when a machine died."""
        whole = 0
        with path.open("rb") as source:
            for number, begin, length in _places(source, path.stat().st_size):
                self.done[good].add(number)
                whole = begin + length
        self._sources[good][path] = whole


def _places(source: BinaryIO, whole: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, beginning and length of each row, up to `whole` bytes or the first invalid row."""
    at = 0
    while at < whole and (row := source.readline()).endswith(b"\n"):
        number, tab, rest = row.partition(b"\t")
        if not tab or not number.isdigit():
            return
        yield int(number), at + len(number) + 1, len(rest)
        at += len(row)


def _rows(path: Path, bytes_max: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the non-empty lines with their numbers from 0; None stands for a line that is too long."""
    with path.open("rb") as source:
        number = 0
        while raw := source.readline(bytes_max + 1):
            if len(raw) > bytes_max and not raw.endswith(b"\n"):
                while raw and not raw.endswith(b"\n"):
                    raw = source.readline(PIECE)
                yield number, None
            elif raw.strip():
                yield number, raw
            number += 1


def _parsed(number: int, raw: bytes, endpoint: str) -> BatchLine:
    try:
        found = orjson.loads(raw)
    except ValueError:
        return BatchLine(number, None, {}, wrong=LineError("invalid_json_line", "This line is not valid JSON."))
    if wrong := _wrong(found, endpoint):
        return BatchLine(number, None, {}, wrong=wrong)
    return BatchLine(number, found["custom_id"], found["body"], size=len(raw))


def _wrong(found: Any, endpoint: str) -> LineError | None:
    if not isinstance(found, dict) or FIELDS - found.keys():
        return LineError("missing_required_parameter", f"A line must have {', '.join(sorted(FIELDS))}.")
    if not isinstance(found["custom_id"], str) or not found["custom_id"]:
        return LineError("invalid_custom_id", "'custom_id' must be a text that is not empty.", "custom_id")
    if found["method"] != "POST":
        return LineError("invalid_method", "'method' must be POST.", "method")
    if found["url"] != endpoint:
        return LineError("mismatched_endpoint", f"'url' must be the batch's endpoint, {endpoint}.", "url")
    if not isinstance(found["body"], dict):
        return LineError("invalid_body", "'body' must be an object.", "body")
    return None


def _repeated(line: BatchLine, seen: set[bytes]) -> LineError | None:
    assert line.custom_id is not None
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return LineError("duplicate_custom_id", f"The custom_id {line.custom_id!r:.80} is used twice.", "custom_id")
    seen.add(digest)
    return None


def error_of(wrong: LineError, line: int | None = None) -> dict[str, Any]:
    """Return OpenAI's error object. `line` counts from 1; None is for an error of the file."""
    return {"code": wrong.code, "line": line, "message": wrong.message, "param": wrong.param}
