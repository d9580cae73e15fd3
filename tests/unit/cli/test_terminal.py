"""Data that others wrote reaches a terminal only as plain text."""

import ast
import re

import pytest

from cli.terminal import echo, echo_json, one_line, plain, row
from tests.conftest import ROOT

CLI = ROOT / "cli"
HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\u202ed\u2066e\rf\x00g\x7fh[red]i[/red]\ud800"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def test_nothing_that_commands_a_terminal_is_left() -> None:
    shown = plain(HOSTILE)

    assert not COMMANDS.search(shown)
    assert shown.startswith("a\\x1b[2J\\x1b]0;title\\x07b\\x9b31mc\\u202ed")
    assert "[red]i[/red]" in shown


def test_lines_and_letters_of_every_language_stay() -> None:
    text = "eins\n\tzwei\nΩ 日本 עברית 👩‍🚀"

    assert plain(text) == text
    assert plain("a\r\nb") == "a\nb"


def test_a_field_of_a_list_cannot_pretend_to_be_another_row() -> None:
    assert one_line("name\nforged  row\t.") == "name forged  row ."
    assert row("a", "b\nc", "") == "a  b c"


def test_every_way_to_the_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    echo(HOSTILE)
    echo(HOSTILE, err=True)
    echo_json({HOSTILE: HOSTILE})

    said = capsys.readouterr()
    assert not COMMANDS.search(said.out + said.err)


def test_the_commands_print_by_no_other_way() -> None:
    for path in CLI.glob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("click.echo", "print", "click.secho"), f"{path}:{node.lineno}"
