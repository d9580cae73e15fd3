"""Grammars in llguidance's dialect of Lark, written rule by rule."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.domain.job import Grammar, GrammarKind

WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x09]{0,40}"}  # enough to indent, but bounded
STARTS = re.compile(r"(?m)^[ \t]*(%llguidance\b|start\s*:)")  # what vLLM takes for Lark
ESCAPED_OR_SLASH = re.compile(r"\\.|/", re.DOTALL)
ANY = "(.|\\n)*"
TEXT = f"TEXT: /{ANY}/"


class Lark:
    """A grammar under construction. `marks` are written as tokens if the vocabulary has them as tokens of their own,
    which `token_of` says."""

    def __init__(self, marks: Sequence[str], token_of: Callable[[str], int | None]) -> None:
        self._tokens = {mark: token for mark in marks if (token := token_of(mark)) is not None}
        self._marks = re.compile("|".join(map(re.escape, self._tokens)) or "(?!)")
        self._rules: list[str] = [TEXT]

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])

    def literal(self, text: str) -> str:
        """An expression for exactly this text, with the marks in it as tokens."""
        parts, at = [], 0
        for found in self._marks.finditer(text):
            parts += [_quoted(text[at : found.start()]), f"<[{self._tokens[found[0]]}]>"]
            at = found.end()
        return " ".join(filter(None, [*parts, _quoted(text[at:])]))

    def until(self, ending: str, schema: Mapping[str, Any] | None = None) -> str:
        """An expression for any text that a string's schema allows, followed by `ending`."""
        text = _regex(schema or {})
        if ending in self._tokens:
            return f"{text} {self.literal(ending)}"
        return self.rule(f"{text} {_quoted(ending)}", lazy=True)

    def json(self, schema: Mapping[str, Any]) -> str:
        return "%json " + json.dumps({**schema, "x-guidance": WHITESPACE})

    def nested(self, grammar: str) -> str:
        """Define a rule for a text of another grammar; return its name."""
        return self.rule(f"%lark {{\n{grammar}\n}}")

    def rule(self, body: str, *, lazy: bool = False) -> str:
        """Define a rule; return its name."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name


def as_lark(grammar: Grammar, *, reasoning: tuple[int, int, bool] | None = None) -> str:
    """The grammar as Lark. `reasoning`: the tokens around the reasoning that may come before the answer, and whether it
    has begun already."""
    answer = _answer(grammar)
    if reasoning is None:
        return answer if STARTS.search(answer) else f"%llguidance {{}}\n{answer}"
    opening, closing, begun = reasoning
    thoughts = f"<[^{closing}]>* <[{closing}]>"
    before = thoughts if begun else f"(<[{opening}]> {thoughts})?"
    return f"start: {before} answer\nanswer: %lark {{\n{answer}\n}}"


def _answer(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = json.loads(grammar.text)
            # A schema's own settings come first, as where llguidance reads the schema itself.
            settings = WHITESPACE | schema.get("x-guidance", {}) if isinstance(schema, dict) else WHITESPACE
            schema = {**schema, "x-guidance": settings} if isinstance(schema, dict) else schema
            text = "start: %json " + json.dumps(schema)
        case GrammarKind.REGEX:
            escaped = ESCAPED_OR_SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], grammar.text)
            text = "start: /" + escaped.replace("\n", "\\n") + "/"
        case GrammarKind.LARK:
            text = grammar.text
    return text


def _regex(schema: Mapping[str, Any]) -> str:
    """A regular expression for the keywords of a string's schema. JSON Schema's pattern may match anywhere in the
    string, unless it is anchored."""
    if pattern := schema.get("pattern"):
        before, after = "" if pattern.startswith("^") else ANY, "" if pattern.endswith("$") else ANY
        inner = pattern.removeprefix("^").removesuffix("$").replace("\\/", "/").replace("/", "\\/")
        return f"/{before}({inner}){after}/"
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return f"/(.|\\n){{{least},{most}}}/" if least or most != "" else "TEXT"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
