"""Reads the documents and the code blocks that tests run."""

import re
from pathlib import Path

from tests.conftest import ROOT

FOLDERS = ("", "docs", "bench", "helm")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def blocks(path: Path, *languages: str) -> list[str]:
    """Return a document's code blocks in these languages, in order."""
    found = re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [str(block) for block in found]


def command_lines(path: Path) -> list[str]:
    """Return what a document shows behind a prompt, with its continued lines."""
    return re.findall(r"^ *\$ ((?:.*\\\n)*.*)$", "\n".join(blocks(path, "console")), re.MULTILINE)


def curl_lines() -> list[str]:
    """Return every curl command in the documents for users and operators."""
    return [line for path in DOCUMENTS for line in command_lines(path) if line.startswith("curl ")]
