"""The commands, options and settings that the documents name are there."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.main import main
from shared.settings import unknown_variables
from tests.conftest import ROOT
from tests.documents import DOCUMENTS, command_lines
from workers.engines.llamacpp.options import LlamaOptions

CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # older releases had other options
COMMAND = re.compile(r"^ *(?:[A-Z_]+=\S* |torchrun .* )*penstock (.*)")
INLINE = re.compile(r"`penstock ([^`]+)`")
OPTION = re.compile(r"--[a-z][a-z-]+")
VARIABLE = re.compile(r"\bPENSTOCK_[A-Z0-9_]*[A-Z0-9]\b")
MODULE = re.compile(r"python -m ((?:bench|tests|tools)[\w.]*)")
MAKE = re.compile(r"(?:^\$ |`)make ([a-z-]+)", re.MULTILINE)


def shown() -> Iterator[str]:
    """Yield the arguments of each `penstock` behind a prompt, also of one that torchrun starts."""
    for line in [line for path in CURRENT for line in command_lines(path)]:
        for part in line.replace("\\\n", " ").split("|"):
            if found := COMMAND.search(part):
                yield shlex.join(shlex.split(found[1].partition("<")[0], comments=True))


def resolved(words: list[str]) -> tuple[click.Command, set[str], list[str]]:
    """Return the command that the first words name, the options that stand with it, and the words behind it."""
    command: click.Command = main
    options = options_of(main)
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
        options |= options_of(command)
    return command, options, words


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("line", sorted(set(shown())))
def test_a_command_line_is_one_that_the_command_takes(line: str) -> None:
    command, _, arguments = resolved(shlex.split(line))

    assert command is not main
    command.make_context("penstock", arguments)


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_text_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    for words in map(str.split, INLINE.findall(text)):
        command, options, rest = resolved(words)
        assert not isinstance(command, click.Group) or not rest or rest[0].startswith("--"), words
        assert set(OPTION.findall(" ".join(words))) <= options | {"--help"}, words
    for name in VARIABLE.findall(text):
        assert list(unknown_variables([name])) == []
    for module in MODULE.findall(text):
        assert importlib.util.find_spec(module), module
    for target in MAKE.findall(text):
        assert target in targets, target


def test_what_takes_the_place_of_an_option_is_one_of_ours() -> None:
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    ours = [row.split("|")[2] for row in text.splitlines() if row.startswith("| ")]
    of_llama = text.partition("## From llama-server")[2].partition("## ")[0]
    options = options_of(main.commands["up"]) | options_of(main.commands["api"])
    options |= options_of(main.commands["keys"].commands["create"])  # type: ignore[attr-defined]

    assert len(ours) > 80
    for cell in ours:
        assert set(OPTION.findall(cell)) <= options, cell
    assert set(re.findall(r"--engine-option (\w+)=", of_llama)) <= LlamaOptions.model_fields.keys()
