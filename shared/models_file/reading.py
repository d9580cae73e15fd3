"""A models file, read. Nothing here looks for the models themselves, and no secret is read."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.models_file.lines import Lines
from shared.models_file.names import problems_of_names
from shared.models_file.problems import ModelsFileError, Problem, problems_of
from shared.models_file.tables import Host, Model, Route, Tables

BYTES_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsFile:
    """A models file that is right. `digest` is that of its bytes. `root` is the folder in which relative sources lie.
    In `models` each model has what the defaults say for it. `lines` tells where each key is written."""

    path: Path
    digest: str
    root: Path
    default: str
    host: Host
    models: Mapping[str, Model]
    routes: Mapping[str, Route]
    lines: Lines = field(compare=False, repr=False)

    def model_of(self, name: str) -> str:
        """Return the name of the model that is served under a name, its own or another. Raises KeyError."""
        for model, table in self.models.items():
            if name == model or name in table.other_names:
                return model
        raise KeyError(name)

    def located(self, source: str) -> str:
        """Return a source as a path if it is a file or a folder below `root`, or is written as a path; else itself."""
        path = self.root / Path(source).expanduser()
        return str(path) if source.startswith((".", "/", "~")) or path.exists() else source


def read(path: Path) -> ModelsFile:
    """Read a models file. Raises ModelsFileError, which names everything that is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ModelsFileError(str(path), [Problem(0, "", f"it cannot be read: {error.strerror}")]) from None
    return parse(content, path)


def parse(content: bytes, path: Path) -> ModelsFile:
    """Read the content of the file at `path`. Raises ModelsFileError."""
    document, lines = _document(content, path)
    try:
        tables = Tables.model_validate(document)
    except ValidationError as error:
        raise ModelsFileError(str(path), [*problems_of(error, lines), *_also(document, error, lines)]) from None
    if problems := list(problems_of_names(tables, lines)):
        raise ModelsFileError(str(path), problems)
    return ModelsFile(
        path=path,
        digest=hashlib.sha256(content).hexdigest(),
        root=path.absolute().parent / Path(tables.root).expanduser(),
        default=tables.default,
        host=tables.host,
        models=_with_defaults(document),
        routes=tables.routes,
        lines=lines,
    )


def _document(content: bytes, path: Path) -> tuple[dict[str, Any], Lines]:
    if len(content) > BYTES_MAX:
        raise ModelsFileError(str(path), [Problem(1, "", f"it has more than {BYTES_MAX} bytes")])
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
        return tomllib.loads(text), Lines(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ModelsFileError(str(path), [Problem(line, "", "it is not UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ModelsFileError(str(path), [_syntax(str(error), content)]) from None


def _syntax(message: str, content: bytes) -> Problem:
    """tomllib ends its message with the place, which is the line of a problem here."""
    what, _, place = message.rpartition(" (at ")
    words = place.rstrip(")").split()
    line = int(words[1].rstrip(",")) if words[:1] == ["line"] else content.count(b"\n") + 1
    return Problem(line, "", f"this is not TOML: {what or message}")


def _also(document: dict[str, Any], error: ValidationError, lines: Lines) -> list[Problem]:
    """The problems between the tables of a file that has others, as far as its tables can be read."""
    for each in sorted(error.errors(include_url=False), key=lambda each: len(each["loc"]), reverse=True):
        _leave_out(document, each["loc"])
    try:
        return list(problems_of_names(Tables.model_validate(document), lines))
    except ValidationError:
        return []


def _leave_out(document: Any, path: tuple[str | int, ...]) -> None:
    """Take the innermost key of a path that is there out of its table."""
    table, key = None, None
    for part in path:
        if not (isinstance(document, dict) and part in document):
            break
        table, key, document = document, part, document[part]
    if table is not None:
        table.pop(key)


def _with_defaults(document: Mapping[str, Any]) -> dict[str, Model]:
    """Each model with the defaults, which are valid in every model that computes by an engine of ours."""
    defaults = document.get("defaults", {})
    models = {}
    for name, table in document["models"].items():
        computed_elsewhere = "upstreams" in table or "run" in table
        below = {key: value for key, value in defaults.items() if not (key == "engine" and computed_elsewhere)}
        models[name] = Model.model_validate({**below, **table})
    return models
