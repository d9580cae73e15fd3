"""The scripts inside Redis: one for each verb, linked from the parts of the Lua files that it needs. Redis creates each
function of a script anew at every call, so a script with all of them would cost more than most verbs do.

A Lua file is a row of parts. Each begins with a header of comments and ends where the next one begins:

    -- verb: settle            what Redis is asked to do; or `-- part: timeline`, which verbs and other parts share
    -- needs: close, log       the parts whose names it uses itself
    -- takes: id, number ttl_s, list events, list held (model, id)          the arguments of a verb, by name

A full line continues in a second one of the same kind. Names of keys (`JOB .. id`, see keys.py) and class weights need
no header. A verb's function has the verb's name and takes one table, `args`, with the names of the header: strings,
numbers, lists of strings, and perhaps a last list of rows, which is read once: `for row in args.held do`. `row` is one
table, filled anew each time, since a table for each row would cost a tenth of the verb. Python gives the same names to
`Verb.arguments`. Both ends of the wire follow the header, so no caller and no verb counts positions.
tests/unit/shared/test_lua.py compares the headers with what the Lua uses.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from operator import itemgetter
from pathlib import Path
from typing import Any

from shared.domain.job import Priority
from shared.redis import keys

HERE = Path(__file__).parent
BEGIN = re.compile(r"^-- (part|verb): (\w+)$", re.MULTILINE)
HEADER = re.compile(r"^-- (needs|takes): (.+)$", re.MULTILINE)
ARGUMENT = re.compile(r"(?:(number|list) )?(\w+)(?: \(([^)]+)\))?")
WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Argument:
    """One value, or a list of values, or a list of rows that have `columns`."""

    name: str
    kind: str
    columns: "Takes | None" = None


class Takes:
    """The arguments of a verb, or the columns of a row: values first, then lists."""

    def __init__(self, arguments: Sequence[Argument]) -> None:
        self.names = frozenset(each.name for each in arguments)
        self.values = [each for each in arguments if each.kind != "list"]
        self.lists = [(each.name, each.columns) for each in arguments if each.kind == "list"]
        self._order = [each.name for each in self.values]
        self._get = itemgetter(*self._order) if len(self._order) > 1 else self._few

    def put(self, where: str, rows: Iterable[Mapping[str, Any]], into: list[Any]) -> None:
        """Append each row's values in this order, and its lists behind their lengths. This runs for every job of every
        step, so the names are not compared while their number is right and none is missing."""
        get, width, lists = self._get, len(self.names), self.lists
        row: Mapping[str, Any] = {}
        try:
            for row in rows:
                if len(row) != width:
                    raise KeyError
                into += get(row)
                for name, columns in lists:
                    items = row[name]
                    into.append(len(items))
                    if columns:
                        columns.put(name, items, into)
                    else:
                        into += items
        except KeyError as error:
            missing, unknown = sorted(self.names - row.keys()), sorted(row.keys() - self.names)
            raise TypeError(f"{where}: missing arguments {missing}, unknown arguments {unknown}") from error

    def _few(self, named: Mapping[str, Any]) -> list[Any]:
        return [named[name] for name in self._order]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a Lua file. Its `text` has no comments."""

    kind: str
    name: str
    file: str
    needs: tuple[str, ...]
    takes: Takes
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    name: str
    takes: Takes
    script: str

    def arguments(self, named: Mapping[str, Any]) -> list[Any]:
        """Return the script's ARGV: the verb, which monitors show, and the values. Raises TypeError with the names that
        are missing or unknown."""
        flat: list[Any] = [self.name]
        self.takes.put(self.name, [named], flat)
        return flat


@cache
def verbs() -> Mapping[str, Verb]:
    return linked(part for path in files() for part in parts(path.name, path.read_text(encoding="utf-8")))


def files() -> list[Path]:
    return sorted(HERE.glob("*.lua"))


def parts(file: str, text: str) -> Iterator[Part]:
    begun = list(BEGIN.finditer(text))
    ends = [*[match.start() for match in begun[1:]], len(text)]
    for match, end in zip(begun, ends, strict=True):
        body = text[match.end() : end]
        header: dict[str, list[str]] = {"needs": [], "takes": []}
        for kind, words in HEADER.findall(body):
            header[kind].append(words)
        lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")]
        yield Part(
            kind=match[1],
            name=match[2],
            file=file,
            needs=tuple(WORD.findall(" ".join(header["needs"]))),
            takes=_declared(", ".join(header["takes"])),
            text="\n".join(lines),
        )


def linked(pieces: Iterable[Part]) -> dict[str, Verb]:
    """Link the verbs among the parts. Raises KeyError for a part that is needed and missing, CycleError for parts that
    need each other."""
    pieces = list(pieces)
    shared = {part.name: part for part in pieces if part.kind == "part"}
    order = list(TopologicalSorter({name: part.needs for name, part in shared.items()}).static_order())
    found = {}
    for verb in pieces:
        if verb.kind == "verb":
            needed = _needed(verb, shared)
            texts = [*[shared[name].text for name in order if name in needed], verb.text]
            script = [*_given("\n".join(texts)), *texts, *_received(verb.takes)]
            script.append(f"return {verb.name}(args)")
            found[verb.name] = Verb(name=verb.name, takes=verb.takes, script="\n".join(script))
    return found


def given() -> dict[str, str]:
    """Return the names that every part may use without a header, with their definitions."""
    weights = ", ".join(f"[{priority.rank}] = {priority.weight}" for priority in Priority)
    return {"CLASS_WEIGHT": f"local CLASS_WEIGHT = {{ {weights} }}", **keys.lua_names()}


def _given(text: str) -> list[str]:
    used = set(WORD.findall(text))
    return [definition for name, definition in given().items() if name in used]


def _needed(part: Part, shared: Mapping[str, Part]) -> set[str]:
    needed, open_ = set[str](), list(part.needs)
    while open_:
        name = open_.pop()
        if name not in needed:
            needed.add(name)
            open_ += shared[name].needs
    return needed


def _declared(text: str) -> Takes:
    found = [Argument(name, kind, _declared(rest) if rest else None) for kind, name, rest in ARGUMENT.findall(text)]
    ranks = [2 if each.columns else int(each.kind == "list") for each in found]
    if ranks != sorted(ranks) or ranks.count(2) > 1:
        raise ValueError(f"not values, then lists, then at most one list of rows: {text}")
    return Takes(found)


def _received(takes: Takes) -> Iterator[str]:
    """Yield the Lua that builds `args` from ARGV. Its `at` is the last index that was read."""
    yield f"local argv, tonumber, at = ARGV, tonumber, {1 + len(takes.values)}"
    yield from _read_lists(takes, "local ")
    pairs = [f"{name} = {value}" for name, value in _read_values(takes, "", 2)]
    pairs += [f"{name} = {name}" for name, _ in takes.lists]
    yield f"local args = {{ {', '.join(pairs)} }}"


def _read_values(takes: Takes, base: str, first: int) -> Iterator[tuple[str, str]]:
    for number, value in enumerate(takes.values, first):
        text = f"argv[{base}{number}]"
        yield value.name, f"tonumber({text})" if value.kind == "number" else text


def _read_lists(takes: Takes, target: str) -> Iterator[str]:
    """Yield the Lua that reads each list into a variable, or a list of rows into a function that returns the next."""
    for name, columns in takes.lists:
        if columns:
            names, values = zip(*_read_values(columns, "at + ", 1), strict=True)
            yield "local left, row = tonumber(argv[at + 1]), {}"
            yield "at = at + 1"
            yield f"local function {name}()"
            yield "if left == 0 then return nil end"
            yield f"{', '.join(f'row.{each}' for each in names)} = {', '.join(values)}"
            yield f"left, at = left - 1, at + {len(names)}"
            yield from _read_lists(columns, "row.")
            yield "return row end"
        else:
            yield "local items, count = {}, tonumber(argv[at + 1])"
            yield "for i = 1, count do items[i] = argv[at + 1 + i] end"
            yield f"{target}{name} = items"
            yield "at = at + 1 + count"
