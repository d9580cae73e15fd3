"""A command names the extra whose packages it lacks."""

import sys

import pytest
from click.testing import CliRunner

from cli.main import main


def test_a_chat_without_its_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cli.chat", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)

    failed = CliRunner().invoke(main, ["chat", "--url", "http://127.0.0.1:1/v1"])

    assert failed.exit_code == 1
    assert "openai" in failed.output
    assert "pip install 'penstock[chat]'" in failed.output
