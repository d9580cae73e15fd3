"""Text on its way to a terminal. Whatever comes from data (a model's words, a job's traceback, the name of a worker or
of a key, a server's error) could hold sequences that command the terminal, so all that commands print goes through
here."""

import json
import re
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

# All control characters but the tab and the line feed, what reverses the direction of the text around it, and halves of
# surrogate pairs, which no terminal can be sent.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BREAKS = re.compile("[\t\n]")


def plain(text: object) -> str:
    """The text with its lines and tabs; what could command a terminal is spelled out, like `\\x1b`."""
    return UNSAFE.sub(_spelled, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """The same in a single line, so that no field of a list can pretend to be another row of it."""
    return BREAKS.sub(" ", plain(text))


def row(*fields: object) -> str:
    """A line of a list."""
    return "  ".join(one_line(field) for field in fields).rstrip()


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The rows under their titles, each column as wide as it has to be."""
    lines = [[one_line(field) for field in line] for line in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{field:<{width}}" for field, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print it, made plain."""
    click.echo(plain(text), err=err, nl=nl)


def echo_json(value: Any) -> None:
    """Print it for programs; JSON in ASCII is plain by itself."""
    click.echo(json.dumps(value, indent=2, default=str))


@contextmanager
def unechoed() -> Iterator[bool]:
    """Keys come at once and are not shown: the ^C of an interruption would shift what is drawn in place. Yields whether
    there is a keyboard at all."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
