"""Readers turn the text between a tool call's marks into its name and arguments, as the text grows. Arguments are
passed on as the model writes them. The forms of calls differ in here only.

A reader that finds no call in its text gives the text back, as a part of the answer.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, assert_never

HEAD_MAX = 4096  # characters in which a call's name must come
SEPARATORS = "[],; \n\t"  # between the calls of a list


class CallStarted(NamedTuple):
    """A call begins."""

    name: str


class ArgumentsDelta(NamedTuple):
    """The next piece of the JSON of the call's arguments."""

    text: str


class PlainText(NamedTuple):
    """The text is no call."""

    text: str


Found = CallStarted | ArgumentsDelta | PlainText
Steps = Generator[Found, None, bool]  # returns False when more text is needed


class CallReader(Protocol):
    """A reader of one marked region, which may hold several calls."""

    def feed(self, text: str) -> Iterator[Found]: ...

    def end(self, *, cut: bool = False) -> Iterator[Found]:
        """Read what is held when the region or the answer ends; `cut`: the answer ended inside the region."""


Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of each tool, by its name
MakeReader = Callable[[Schemas], CallReader]

OBJECT = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
BARE = re.compile(r"([\w.:-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")


class JsonCalls:
    """A reader of calls written as `{"name": ..., "arguments": {...}}`, one or several, listed or not; with `bare`,
    also as `name{...}`, which newer Mistral models write. With `known_only`, everything but a call of a known tool is
    text."""

    def __init__(self, schemas: Schemas, *, bare: bool = False, known_only: bool = False) -> None:
        self._schemas = schemas
        self._bare = bare
        self._known_only = known_only
        self._held = ""
        self._state: _State = _Head()

    def feed(self, text: str) -> Iterator[Found]:
        self._held += text
        while self._held and (yield from self._advance()):
            pass

    def end(self, *, cut: bool = False) -> Iterator[Found]:
        held = self._take(len(self._held))
        if isinstance(self._state, _Head) and held.strip():
            yield from self._whole(held)

    def _advance(self) -> Steps:
        """Take from the held text what the state makes of it."""
        match self._state:
            case _Head() as head:
                return (yield from self._head(head))
            case _Arguments() as arguments:
                yield self._more(arguments)
            case _Tail(nesting):
                self._skip(nesting)
            case _TextOnly():
                yield PlainText(self._take(len(self._held)))
            case _:
                assert_never(self._state)
        return True

    def _head(self, head: "_Head") -> Steps:
        self._held = self._held.lstrip(SEPARATORS)
        found = OBJECT.match(self._held) or (BARE.match(self._held) if self._bare else None)
        if found:
            name = json.loads(found[1]) if found.re is OBJECT else found[1]
            if self._may_call(name):
                self._take(found.end())
                self._state = _Arguments(base=1 if found.re is OBJECT else 0)
                yield CallStarted(name)
                return True
        if self._held.startswith("{"):
            if size := head.nesting.end_of(self._held[head.probed :], 0):
                whole = self._take(head.probed + size)
                self._state = _Head()
                yield from self._whole(whole)
                return True
            head.probed = len(self._held)
        elif len(self._held) > HEAD_MAX:
            yield self._unread(self._take(len(self._held)))
            return True
        return False

    def _more(self, arguments: "_Arguments") -> ArgumentsDelta:
        size = arguments.nesting.end_of(self._held, arguments.base)
        if size:
            self._state = _Tail(arguments.nesting) if arguments.base else _Head()
        return ArgumentsDelta(self._take(size or len(self._held)))

    def _skip(self, nesting: "_Nesting") -> None:
        size = nesting.end_of(self._held, 0)
        if size:
            self._state = _Head()
        self._take(size or len(self._held))

    def _whole(self, text: str) -> Iterator[Found]:
        """Read a whole object: a call whose keys come in another order, or no call."""
        call = _call_of(text)
        if call is None or not self._may_call(call[0]):
            yield self._unread(text)
            return
        name, arguments = call
        yield CallStarted(name)
        yield ArgumentsDelta(
            arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        )

    def _unread(self, text: str) -> PlainText:
        """Give back text that is no call. If only a call's own form marks it, no call can follow other text."""
        if self._known_only:
            self._state = _TextOnly()
        return PlainText(text)

    def _may_call(self, name: str) -> bool:
        return not self._known_only or name in self._schemas

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        return taken


def _call_of(text: str) -> tuple[str, Any] | None:
    """The name and arguments of a call in JSON; None if the text is no call."""
    try:
        call = json.loads(text)
        name = call["name"]
        arguments = call["arguments"] if "arguments" in call else call["parameters"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (name, arguments) if isinstance(name, str) else None


class Tags(NamedTuple):
    """Patterns of a call in tags. `name` has one group; `argument` has two: key and value."""

    name: re.Pattern[str]
    argument: re.Pattern[str]


class TaggedCalls:
    """A reader of one call in tags. Each argument becomes JSON of the type that the tool's schema gives it."""

    def __init__(self, schemas: Schemas, tags: Tags) -> None:
        self._schemas = schemas
        self._tags = tags
        self._held = ""
        self._properties: Mapping[str, Any] | None = None
        self._count = 0

    def feed(self, text: str) -> Iterator[Found]:
        self._held += text
        yield from self._read()

    def end(self, *, cut: bool = False) -> Iterator[Found]:
        if self._properties is None:
            self._held += "\n"  # a name may be all of the text
            yield from self._read()
        if self._properties is None:
            yield PlainText(self._held.rstrip("\n"))
        elif not cut:
            yield ArgumentsDelta("{}" if not self._count else "}")

    def _read(self) -> Iterator[Found]:
        if self._properties is None:
            if not (found := self._tags.name.match(self._held)):
                return
            self._held = self._held[found.end() :]
            self._properties = self._schemas.get(found[1], {}).get("properties", {})
            yield CallStarted(found[1])
        while found := self._tags.argument.search(self._held):
            self._held = self._held[found.end() :]
            key, value = found[1].strip(), _typed(found[2], self._properties.get(found[1].strip()))
            yield ArgumentsDelta(("{" if not self._count else ", ") + f"{json.dumps(key, ensure_ascii=False)}: {value}")
            self._count += 1


def _typed(text: str, schema: Any) -> str:
    """The value as JSON, of the schema's type if it can be read so."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    if wanted != "string":
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


class _Nesting:
    """The depth of objects and lists in a JSON text that is fed in pieces."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._quoted = False
        self._escaped = False

    def end_of(self, text: str, base: int) -> int:
        """The number of characters until the depth is `base` again; 0 if it is not, and the whole text counts as
        fed."""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._quoted = character != '"'
                self._escaped = character == "\\"
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self.depth += 1
            elif character in "]}":
                self.depth -= 1
                if self.depth <= base:
                    return at + 1
        return 0


@dataclass(slots=True)
class _Head:
    """The state before a call or between two: the held text may begin one. `probed` characters of it hold no end of an
    object."""

    nesting: _Nesting = field(default_factory=_Nesting)
    probed: int = 0


class _Arguments:
    """The state in a call's arguments, which end when the depth is `base` again."""

    def __init__(self, *, base: int) -> None:
        self.base = base
        self.nesting = _Nesting(base)


class _Tail(NamedTuple):
    """The state behind the arguments: the rest of the call's object is skipped."""

    nesting: _Nesting


class _TextOnly:
    """The state after text if `known_only`: everything that follows is text."""


_State = _Head | _Arguments | _Tail | _TextOnly
