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


def curl_lines() -> list[str]:
    """Return every curl command in the documents for users and operators."""
    shown = [block for path in DOCUMENTS for block in blocks(path, "console")]
    return re.findall(r"^\$ (curl (?:.*\\\n)*.*)$", "\n".join(shown), re.MULTILINE)
