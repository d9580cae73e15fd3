"""A command names the extra whose packages it lacks."""

import sys

import pytest
from click.testing import CliRunner

from cli.main import main


@pytest.mark.parametrize(
    ("command", "package"),
    [(["chat", "--url", "http://127.0.0.1:1/v1"], "openai"), (["top", "--once"], "rich.console")],
)
def test_a_command_without_its_packages_says_how_to_install_them(
    command: list[str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"cli.{command[0]}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    failed = CliRunner().invoke(main, command)

    assert failed.exit_code == 1
    assert package in failed.output
    assert "pip install 'penstock[chat]'" in failed.output
