"""Grammars in llguidance's dialect of Lark, written rule by rule."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x09]{0,40}"}  # room to indent, but not to go on for ever
ANY = "(.|\\n)*"
TEXT = f"TEXT: /{ANY}/"


class Lark:
    """`marks` that are tokens of their own in the model's vocabulary, as `token_of` knows, are written as such."""

    def __init__(self, marks: Sequence[str], token_of: Callable[[str], int | None]) -> None:
        self._tokens = {mark: token for mark in marks if (token := token_of(mark)) is not None}
        self._marks = re.compile("|".join(map(re.escape, self._tokens)) or "(?!)")
        self._rules: list[str] = [TEXT]

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])

    def literal(self, text: str) -> str:
        """Exactly this; marks in it as tokens."""
        parts, at = [], 0
        for found in self._marks.finditer(text):
            parts += [_quoted(text[at : found.start()]), f"<[{self._tokens[found[0]]}]>"]
            at = found.end()
        return " ".join(filter(None, [*parts, _quoted(text[at:])]))

    def until(self, ending: str, schema: Mapping[str, Any] | None = None) -> str:
        """Any text, as far as a string's schema says, and what ends it."""
        text = _regex(schema or {})
        if ending in self._tokens:
            return f"{text} {self.literal(ending)}"
        return self.rule(f"{text} {_quoted(ending)}", lazy=True)

    def json(self, schema: Mapping[str, Any]) -> str:
        return "%json " + json.dumps({**schema, "x-guidance": WHITESPACE})

    def rule(self, body: str, *, lazy: bool = False) -> str:
        """Define it; its name."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name


def _regex(schema: Mapping[str, Any]) -> str:
    """For the keywords of a string. A pattern holds anywhere in it, unless it says otherwise."""
    if pattern := schema.get("pattern"):
        before, after = "" if pattern.startswith("^") else ANY, "" if pattern.endswith("$") else ANY
        inner = pattern.removeprefix("^").removesuffix("$").replace("\\/", "/").replace("/", "\\/")
        return f"/{before}({inner}){after}/"
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return f"/(.|\\n){{{least},{most}}}/" if least or most != "" else "TEXT"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
