"""Makes text safe to print in a terminal. Data such as a model's answer, a job's traceback, the name of a worker or a
key, or a server's error may hold escape sequences that control the terminal. All output of the commands goes through
this module."""

import json
import re
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

# All control characters but tab and line feed, the characters that change the direction of text, and lone surrogates,
# which cannot be encoded.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BREAKS = re.compile("[\t\n]")


def plain(text: object) -> str:
    """Return the text with its lines and tabs; characters that could control a terminal are escaped, like `\\x1b`."""
    return UNSAFE.sub(_escaped, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """Return the plain text as a single line, so that no field of a list can pass for another row."""
    return BREAKS.sub(" ", plain(text))


def row(*fields: object) -> str:
    """Format one line of a list."""
    return "  ".join(one_line(field) for field in fields).rstrip()


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows under their titles, with each column as wide as its longest field."""
    lines = [[one_line(field) for field in line] for line in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{field:<{width}}" for field, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print the text, made plain."""
    click.echo(plain(text), err=err, nl=nl)


def echo_json(value: Any) -> None:
    """Print a value as JSON; JSON in ASCII is plain by itself."""
    click.echo(json.dumps(value, indent=2, default=str))


@contextmanager
def unechoed() -> Iterator[bool]:
    """Deliver key presses at once and do not echo them: an echoed ^C would shift the tables that are drawn in place.
    Yields False if standard input is not a terminal."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
