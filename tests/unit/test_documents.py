"""The documents agree with the code: derived pages, links, and lists that must be complete."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.domain.lifecycle import State
from tests.conftest import ROOT
from tests.documents import DOCUMENTS, blocks

DERIVED = {
    "settings_table": "docs/settings.md",
    "metrics_table": "docs/metrics.md",
    "models_schema": "docs/models.schema.json",
}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACE = re.compile(r"\[`([^`:\]]+):([\w.]+)`\]\(([^)]+)\)")  # [`file:function`](file)
FILE = re.compile(r"`([a-z]\w*(?:/\w+)+\.(?:py|lua|json|yaml))`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.mark.parametrize("tool", DERIVED)
def test_a_derived_page_is_what_its_program_prints(tool: str) -> None:
    command = [sys.executable, "-m", f"tools.{tool}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert (ROOT / DERIVED[tool]).read_text(encoding="utf-8") == made.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    targets = [target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]

    for target in targets:
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_place_in_the_code_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    places = PLACE.findall(text)

    assert len(places) >= 10
    for file in FILE.findall(text):
        assert (ROOT / file).is_file(), file
    for file, names, target in places:
        assert target == file
        assert defines(ROOT / file, names.split(".")), f"{file}:{names}"


def test_every_module_is_on_the_map() -> None:
    (drawn,) = blocks(ROOT / "ARCHITECTURE.md", "")
    parts = re.split(r"^(\w\S*)/ .*$", drawn, flags=re.MULTILINE)
    packages = {
        folder: set(re.findall(r"[\w.]+", modules)) for folder, modules in zip(parts[1::2], parts[2::2], strict=True)
    }

    for folder in ("penstock", "shared", "api", "workers", "cli"):
        sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".lua")]
        for path in sources:
            name = path.stem if path.suffix == ".py" else path.name
            if path.stat().st_size:
                assert name in packages[str(path.parent.relative_to(ROOT))], path


def test_every_state_is_documented() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")

    for state in State:
        assert f"| {state} |" in text


def test_every_direct_dependency_is_justified() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = project[: project.index("[project.scripts]")]

    for name in re.findall(r'"([a-z-]+)(?:\[[a-z]+\])?[><=]', lines):
        if name != "setuptools":
            assert f"| {name} |" in text


def defines(path: Path, names: list[str]) -> bool:
    """Return True if a file defines this function, or this class with this method."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".lua":
        return bool(re.search(rf"^(?:local )?function {re.escape('.'.join(names))}\(", source, re.MULTILINE))
    body: list[ast.stmt] = ast.parse(source).body
    for name in names:
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
        found = [node for node in body if isinstance(node, kinds) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return True


def anchors(path: Path) -> set[str]:
    """Return the names by which GitHub links to headings."""
    headings = HEADING.findall(
        re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
