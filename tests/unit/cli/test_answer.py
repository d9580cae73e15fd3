"""An answer in a terminal of 24 rows: each of its lines appears once, however often blocks were redrawn."""

import io
import re
import sys

import pytest
from rich.console import Console

from cli.answer import Answer, finished
from tests.screen import Emulator
from tests.unit.cli.test_terminal import COMMANDS, HOSTILE


def answered(text: str, *, chunk: int = 7, rows: int = 24) -> list[str]:
    """Return all lines that a terminal of that many rows has in the end, those above its top included."""
    screen = io.StringIO()
    with Answer(Console(file=screen, force_terminal=True, width=80, height=rows, color_system=None)) as answer:
        for at in range(0, len(text), chunk):
            answer.add(text[at : at + chunk])
            answer.draw()
    emulator = Emulator(rows)
    emulator.feed(screen.getvalue())
    return [line.rstrip() for line in emulator.lines]


def test_a_list_longer_than_the_screen_is_shown_once() -> None:
    shown = answered("".join(f"{n}. This is item number {n}\n" for n in range(1, 71)))

    found = [line for line in shown if "item number" in line]
    assert [int(line.rpartition(" ")[2]) for line in found] == list(range(1, 71))
    assert len(shown) <= 72


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_blocks_of_all_kinds_are_shown_once_and_apart(chunk: int) -> None:
    code = "\n".join(f"line{n} = {n}" for n in range(60))
    table = "| a | b |\n|---|---|\n" + "".join(f"| cell{n} | x |\n" for n in range(40))
    text = f"# Title\n\nFirst words.\n\n```python\n{code}\n```\n\nMiddle words.\n\n{table}\nLast words"

    shown = "\n".join(answered(text, chunk=chunk))

    for once in ("Title", "First words.", "line0 ", "line59 ", "Middle words.", "cell0 ", "cell39 ", "Last words"):
        assert shown.count(once) == 1, once
    assert "First words.\n\n" in shown


def test_what_is_drawn_by_itself_meanwhile_takes_no_line_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.answer.REFRESHES_PER_S", 1000)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns everywhere
    try:
        for _ in range(5):
            test_a_list_longer_than_the_screen_is_shown_once()
    finally:
        sys.setswitchinterval(usual)


def test_an_interrupted_answer_is_shown_once() -> None:
    screen = io.StringIO()
    with Answer(Console(file=screen, force_terminal=True, width=80, height=24, color_system=None)) as answer:
        for n in range(40):
            answer.add(f"- item {n}\n")
            answer.draw()

    emulator = Emulator(24)
    emulator.feed(screen.getvalue())
    assert [line.strip() for line in emulator.lines if line.strip()] == [f"• item {n}" for n in range(40)]


def test_markdown_smuggles_nothing_in() -> None:
    screen = io.StringIO()
    with Answer(Console(file=screen, force_terminal=True, width=200, height=24, color_system=None)) as answer:
        answer.add(f"{HOSTILE}\n\n&#x202e;turned&#x9b;\n\n[link](http://evil\x1b[2J.example/)\n\n- done\n")

    left = re.sub(r"\x1b\[(\?25[hl]|2K|1A|\d*A)|\r", "", screen.getvalue())
    assert not COMMANDS.search(left)
    assert "evil" in left


def test_what_is_not_a_terminal_gets_the_answer_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Answer(Console(file=io.StringIO(), force_terminal=False)) as answer:
        answer.add("**bold**\n")
        answer.add("1. \x1b[2Jx")

    assert capsys.readouterr().out == "**bold**\n1. \\x1b[2Jx\n"


@pytest.mark.parametrize(
    ("source", "done"),
    [
        ("Intro.\n\n1. one\n2. two\n   more\n3. thr", "Intro.\n\n1. one\n"),
        ("- a\n-", ""),  # it may become `-foo`, which belongs to a
        ("Title\n---", ""),
        ("```\na\n\nb\n", ""),
        ("# H\ntext\n", "# H\n"),
        ("", ""),
    ],
)
def test_only_what_can_change_no_more_is_finished(source: str, done: str) -> None:
    found, rest, _ = finished(source)

    assert (found, found + rest) == (done, source)
