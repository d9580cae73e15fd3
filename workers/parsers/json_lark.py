"""A Lark grammar of a text becomes one of the same text as it stands within a JSON string.

Characters are written as JSON writes them at their shortest: a quotation mark and a backslash behind a backslash,
control characters by their letters or numbers, and every other character as itself. A lexer cannot go back by a
backslash that it took for another lexeme's, so each regular expression becomes a rule of single characters."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from shared.domain.errors import InvalidRequest

PARAM = "tools"
SHOWN = 60  # characters of what is refused
SPECIAL = ['"', "\\", *map(chr, range(0x20))]  # the characters that JSON writes otherwise
PLAIN = r'[^"\\\x00-\x1f]'
# A string or an expression that has no end is taken to the end of its line, so that it is looked through once.
TOKENS = re.compile(
    r"""(?P<comment>//[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*+"?)(?P<any_case>i?)"""
    r"""|(?P<regex>/(?:[^/\\\n]|\\.)++)(?P<end>/?)(?P<flags>[imsxu]*)"""
    r"""|%import[ \t]+common\.(?P<imported>\w+)|(?P<refused>%\w*|[~&]|<\[)|(?P<name>(?<!\w)[A-Z][A-Z0-9_]*\b)"""
)
# The parts of a regular expression: classes, escapes, numbers of repeats, groups' beginnings, single characters.
ATOMS = re.compile(
    r"\[\^?\]?(?:[^\]\\]|\\.)*+\]"
    r"|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[pP](?:\{\w+\}|\w)|.)"
    r"|\{\d*+,?\d*+\}|\(\?P?<\w+>|\(\?[^:)]{0,3}[:)]?|.",
    re.DOTALL,
)
ESCAPES = re.compile(r"(\\(?:u.{4}|.))")
REPEATS = ("*", "+", "?", "{")
# The terminals of Lark's `common` that have special characters; the others are imported as they are.
COMMON = {
    "CR": r"/\r/",
    "ESCAPED_STRING": r'/"([^"\\\n]|\\[^\n])*"/',
    "LF": r"/\n/",
    "NEWLINE": r"/(\r?\n)+/",
    "WS": r"/[ \t\f\r\n]+/",
    "WS_INLINE": r"/[ \t]+/",
}


def within_json(grammar: str) -> str:
    """Return the grammar of the text within a JSON string. Raises InvalidRequest for what cannot be written so."""
    kept = {found["imported"] for found in TOKENS.finditer(grammar) if found["imported"]} - COMMON.keys()
    return TOKENS.sub(lambda found: _written(found, kept), grammar)


def _written(found: re.Match[str], kept: set[str]) -> str:
    if found["string"]:
        return _literal(_escaped(_string(found["string"])), found["any_case"])
    if found["regex"]:
        if not found["end"]:
            raise InvalidRequest(f"'{PARAM}': the regular expression {found[0][:SHOWN]} has no end.", param=PARAM)
        return "(" + " ".join(_rule(found["regex"][1:], found["flags"])) + ")"
    if name := found["imported"]:
        return f"{_as_rule(name)}: {within_json(COMMON[name])}" if name in COMMON else found[0]
    if found["refused"]:
        message = f"'{PARAM}': the grammar of a custom tool must not have '{found['refused']}'."
        raise InvalidRequest(message, param=PARAM)
    if name := found["name"]:
        return name if name in kept else _as_rule(name)
    return ""  # a comment


def _as_rule(terminal: str) -> str:
    return f"terminal_{terminal.lower()}"


def _string(written: str) -> str:
    try:
        text: str = json.loads(written, strict=False)
    except ValueError as error:
        raise InvalidRequest(f"'{PARAM}': the string {written[:SHOWN]} cannot be read.", param=PARAM) from error
    return text


def _literal(text: str, any_case: str) -> str:
    """Return an expression for the text, in which what is behind a backslash keeps its case."""
    if not any_case:
        return json.dumps(text, ensure_ascii=False)
    parts = enumerate(ESCAPES.split(text))
    return "(" + " ".join(json.dumps(part, ensure_ascii=False) + any_case * (at % 2 == 0) for at, part in parts) + ")"


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _rule(pattern: str, flags: str) -> Iterator[str]:
    """Yield the parts of a rule for the text that the pattern matches."""
    before = "("
    for found in ATOMS.finditer(pattern):
        part = _part(found[0], flags, before, last=found.end() == len(pattern))
        if before in ("(", "|") and part in (")", "|"):
            yield '""'
        if part:
            yield part
            before = part
    if before in ("(", "|"):
        yield '""'


def _part(atom: str, flags: str, before: str, *, last: bool) -> str:
    """Return what the atom is in a rule; nothing for an anchor where it says nothing, and for laziness."""
    match atom:
        case "(" | "(?:" | ")" | "|":
            return atom[0]
        case "^" if before == "(":
            return ""
        case "$" if last:
            return ""
        case "?" | "+" if before[0] in REPEATS:
            return ""
        case _ if atom.startswith(REPEATS) and atom != "{":
            return atom
        case _ if atom.startswith(("(?P<", "(?<")) and atom.endswith(">"):
            return "("
        case "^" | "$" | "\\b" | "\\B" | "\\A" | "\\z":
            pass
        case _ if not atom.startswith("(?"):
            return _character(atom, flags)
    message = f"'{PARAM}': the grammar of a custom tool must not have '{atom[:SHOWN]}' in a regular expression."
    raise InvalidRequest(message, param=PARAM)


@lru_cache(maxsize=256)
def _character(atom: str, flags: str) -> str:
    """Return an expression for the one character that the atom matches, as JSON writes it. The flags are not for what
    JSON writes behind a backslash: it knows no `\\N`."""
    others = flags.replace("s", "")
    if atom.startswith(("\\p", "\\P")):
        return f"/[{atom}&&{PLAIN}]/{others}"  # with no control character, and neither of the two others
    try:
        matches = re.compile(atom, re.DOTALL if "s" in flags else re.NOFLAG).fullmatch
    except re.error as error:
        raise InvalidRequest(f"'{PARAM}': the pattern {atom[:SHOWN]} cannot be read: {error}.", param=PARAM) from error
    special = [character for character in SPECIAL if matches(character)]
    written = "|".join(_alternatives(special))
    if not special:
        return f"/{atom}/{others}"
    if len(special) == 1 and not atom.startswith("["):
        return f"/{written}/"
    plain = PLAIN if atom == "." else f"[{atom}&&{PLAIN}]"
    return f"(/{plain}/{others} | /{written}/)" if others else f"/({plain}|{written})/"


def _alternatives(special: list[str]) -> Iterator[str]:
    """Yield a pattern for each of the characters as JSON writes it; all those that are written by numbers have one."""
    numbered = [character for character in SPECIAL if _escaped(character).startswith("\\u")]
    together = set(numbered) <= set(special)
    for character in special:
        if not (together and character in numbered):
            yield re.escape(_escaped(character))
    if together:
        yield r"\\u00(0[0-7be-f]|1[0-9a-f])"
