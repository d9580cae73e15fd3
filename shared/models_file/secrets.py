"""Secrets in a models file: `${env:NAME}`, the variable that holds one. Nothing but a worker reads the variable."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.errors import SettingsError

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


def variables_of(value: Any) -> Iterator[str]:
    """Yield the names of the variables in a text, and in all texts of a list or table."""
    match value:
        case str():
            yield from SECRET.findall(value)
        case list() | tuple():
            for each in value:
                yield from variables_of(each)
        case Mapping():
            for each in value.values():
                yield from variables_of(each)


def with_secrets(value: Any, environment: Mapping[str, str]) -> Any:
    """Return the value with each variable's content in its place. Raises SettingsError, which names the variable, for
    one that is not set."""
    match value:
        case str():
            return SECRET.sub(lambda found: _content(found[1], environment), value)
        case list() | tuple():
            return [with_secrets(each, environment) for each in value]
        case Mapping():
            return {name: with_secrets(each, environment) for name, each in value.items()}
    return value


def _content(name: str, environment: Mapping[str, str]) -> str:
    if not (content := environment.get(name, "").strip()):
        raise SettingsError(f"{name}: this environment variable is not set")
    return content
