"""A problem of a models file is told with its line and key, and never with a value that may be secret."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from shared.domain.errors import SettingsError
from shared.models_file.lines import Lines, Path
from shared.models_file.tables import Defaults, Host, Model, Recommended, Route, Tables
from shared.models_file.upstreams import Upstream
from shared.settings import Settings


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem. `line` counts from 1, and is 0 for a file that cannot be read; `key` is dotted, as in the file, and
    empty if the whole file is meant."""

    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line else []
        return ": ".join([*where, *([self.key] if self.key else []), self.message])


class ModelsFileError(SettingsError):
    """A models file that cannot be used. `problems` are in the order of their lines."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = sorted(set(problems))
        super().__init__("\n".join(f"{file}, {problem}" for problem in self.problems))


def dotted(path: Path) -> str:
    """Return a path as the file would write it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = part.replace("-", "").replace("_", "").isalnum() and part.isascii()
            text += ("." if text else "") + (part if plain else f'"{part}"')
    return text


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence that tells the nearest of the known names, or '' if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def problems_of(error: ValidationError, lines: Lines) -> list[Problem]:
    """Return pydantic's errors as problems."""
    found = []
    for each in error.errors(include_input=False, include_url=False):
        path = _written(each["loc"])
        message = _unknown(path) if each["type"] == "extra_forbidden" else _sentence(each["msg"])
        found.append(Problem(lines.of(path), dotted(path), message))
    return found


def _written(path: Path) -> Path:
    """The path without pydantic's own parts: branches of a union, and `[key]` of a table's name."""
    return tuple(part for part in path if part != "[key]" and not (isinstance(part, str) and _branch(part)))


def _branch(part: str) -> bool:
    return part.startswith(("literal[", "list[", "function-", "union["))


def _sentence(message: str) -> str:
    if message.startswith("Input should be "):
        return "it must be " + message.removeprefix("Input should be ")
    text = message.removeprefix("Value error, ")
    return text[0].lower() + text[1:]


def _unknown(path: Path) -> str:
    name, table = str(path[-1]), _table(path[:-1])
    if name in Settings.model_fields and issubclass(table, Defaults):
        return f"this is a setting of whole processes; set PENSTOCK_{name.upper()} in their environment"
    known = list(table.model_fields)
    return "there is no such key" + (did_you_mean(name, known) or f"; there are {', '.join(known)}")


def _table(path: Path) -> type[BaseModel]:
    """The class of the table at a path."""
    match path:
        case ("host",):
            return Host
        case ("defaults",):
            return Defaults
        case ("models", _):
            return Model
        case ("models", _, "upstreams", _):
            return Upstream
        case ("models", _, "recommended"):
            return Recommended
        case ("routes", _):
            return Route
    return Tables
