"""From the text between a tool call's marks to its name and arguments, as it grows. What the arguments are is passed on
as the model writes it; how the forms differ is all in here.

A reader that finds no call in its text gives the text back: it is part of the answer.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

HEAD_MAX = 4096  # a name that has not come by then is none


class CallStarted(NamedTuple):
    """A call begins."""

    name: str


class ArgumentsDelta(NamedTuple):
    """More of its arguments' JSON."""

    text: str


class PlainText(NamedTuple):
    """This was no call."""

    text: str


Found = CallStarted | ArgumentsDelta | PlainText


class CallReader(Protocol):
    """Of one marked region, which may hold several calls."""

    def feed(self, text: str) -> Iterator[Found]: ...

    def end(self, *, cut: bool = False) -> Iterator[Found]:
        """The region is over, or the answer is; `cut`: in the middle of it."""


Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of each tool, by its name
MakeReader = Callable[[Schemas], CallReader]

OBJECT = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
BARE = re.compile(r"([\w.:-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")


class JsonCalls:
    """`{"name": .., "arguments": {..}}`, one or several, listed or not; with `bare`, also `name{..}` as newer Mistrals
    write. `known_only`: anything else than a call of a tool that there is, is text."""

    def __init__(self, schemas: Schemas, *, bare: bool = False, known_only: bool = False) -> None:
        self._schemas = schemas
        self._bare = bare
        self._known_only = known_only
        self._nesting = _Nesting()
        self._held = ""
        self._probed = 0  # how much of an object has been searched for its end in vain
        self._base: int | None = None  # the depth at which the arguments began, while they come
        self._skipping = False
        self._text_only = False

    def feed(self, text: str) -> Iterator[Found]:
        if self._text_only:
            yield PlainText(text)
            return
        self._held += text
        while self._held:
            before = (len(self._held), self._base, self._skipping)
            if self._base is not None:
                yield from self._arguments(self._base)
            elif self._skipping:
                self._skip()
            else:
                yield from self._head()
            if before == (len(self._held), self._base, self._skipping):
                return

    def end(self, *, cut: bool = False) -> Iterator[Found]:
        held, self._held = self._held, ""
        if self._base is None and not self._skipping and held.strip():
            yield from self._whole(held)

    def _unread(self, text: str) -> Iterator[Found]:
        """Where nothing but a call's own form marks it, what follows other text is text."""
        self._text_only = self._known_only
        held, self._held = (self._held, "") if self._text_only else ("", self._held)
        yield PlainText(text + held)

    def _head(self) -> Iterator[Found]:
        self._held = self._held.lstrip("[],; \n\t")
        found = OBJECT.match(self._held) or (BARE.match(self._held) if self._bare else None)
        if found:
            name = json.loads(found[1]) if found.re is OBJECT else found[1]
            if not self._known_only or name in self._schemas:
                self._held = self._held[found.end() :]
                self._base = 1 if found.re is OBJECT else 0
                self._nesting, self._probed = _Nesting(self._base), 0
                yield CallStarted(name)
                return
        if self._held.startswith("{"):
            if size := self._nesting.end_of(self._held[self._probed :], 0):
                whole, self._held = self._held[: self._probed + size], self._held[self._probed + size :]
                self._nesting, self._probed = _Nesting(), 0
                yield from self._whole(whole)
            else:
                self._probed = len(self._held)
        elif len(self._held) > HEAD_MAX:
            held, self._held = self._held, ""
            yield from self._unread(held)

    def _arguments(self, base: int) -> Iterator[Found]:
        size = self._nesting.end_of(self._held, base)
        taken = size or len(self._held)
        text, self._held = self._held[:taken], self._held[taken:]
        yield ArgumentsDelta(text)
        if size:
            self._base, self._skipping = None, base > 0

    def _skip(self) -> None:
        """What an object has after its arguments."""
        size = self._nesting.end_of(self._held, 0)
        self._held = self._held[size:] if size else ""
        self._skipping = not size

    def _whole(self, text: str) -> Iterator[Found]:
        """A call whose keys come in another order, or none."""
        try:
            call = json.loads(text)
            name = call["name"]
            arguments = call["arguments"] if "arguments" in call else call["parameters"]
        except (ValueError, KeyError, TypeError, RecursionError):
            yield from self._unread(text)
            return
        if not isinstance(name, str) or (self._known_only and name not in self._schemas):
            yield from self._unread(text)
            return
        yield CallStarted(name)
        yield ArgumentsDelta(
            arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        )


class Tags(NamedTuple):
    """How a call is written in tags. `name` has one group, `argument` two: the key and the value."""

    name: re.Pattern[str]
    argument: re.Pattern[str]


class TaggedCalls:
    """One call in tags. Its arguments become JSON one by one, of the types that the tool's schema says."""

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
            self._held += "\n"  # a name may be all there is
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
    """The value as JSON."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    if wanted != "string":
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


class _Nesting:
    """How deep in objects and lists a JSON text is, fed in pieces."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._quoted = False
        self._escaped = False

    def end_of(self, text: str, base: int) -> int:
        """How much of the text there is until the depth is `base` again; 0 if it is not. Then all of it is taken."""
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
