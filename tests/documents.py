"""The documents, and the blocks of code in them that tests run."""

import re
from pathlib import Path

from tests.conftest import ROOT

FOLDERS = ("", "docs", "bench", "helm")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a document in these languages, in their order."""
    found = re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [str(block) for block in found]


def curl_lines() -> list[str]:
    """Every curl command of the documents for users and operators."""
    shown = [block for path in DOCUMENTS for block in blocks(path, "console")]
    return re.findall(r"^\$ (curl (?:.*\\\n)*.*)$", "\n".join(shown), re.MULTILINE)
