"""The options of an engine: what only it knows, as `--engine-option KEY=VALUE` or `PENSTOCK_ENGINE_OPTIONS`."""

import os
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.domain.errors import SettingsError
from shared.models_file.secrets import with_secrets
from shared.models_file.tables import Recommended

OPTIONS_MAX = 1000


class EngineOptions(BaseModel):
    """The base of each engine's options: its fields, with their bounds, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


Options = TypeVar("Options", bound=BaseModel)


def parse_options(pairs: Seq[str], variable: str = "") -> dict[str, Any]:
    """The options of `variable`, a JSON object, and of `pairs`, KEY=VALUE, which win. A value is JSON, or else a text.
    Raises SettingsError."""
    options = _object(variable) if variable else {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise SettingsError(f"ENGINE_OPTION: {pair!r} is not KEY=VALUE")
        options[key] = _value(value)
    if len(options) > OPTIONS_MAX:
        raise SettingsError(f"ENGINE_OPTION: there are {len(options)} options; {OPTIONS_MAX} are the most")
    return options


def resolved_options(
    engine: str, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Return the options with the content of each variable in the place of its `${env:NAME}`. Keys of upstreams stay
    references, which their engine resolves. Raises SettingsError for a variable that is not set."""
    kept = {"upstream": options.keys(), "command": options.keys() - {"run"}}.get(engine, ())
    return {name: value if name in kept else with_secrets(value, environment) for name, value in options.items()}


def recommended_of(variable: str) -> dict[str, Any]:
    """Return the sampling parameters of PENSTOCK_RECOMMENDED, by their names. Raises SettingsError."""
    try:
        return Recommended.model_validate_json(variable or "{}").given
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"PENSTOCK_RECOMMENDED: {'.'.join(map(str, first['loc']))} {first['msg']}") from None


def validated(engine: str, options: Mapping[str, Any], kind: type[Options]) -> Options:
    """The options as the engine's own class. Raises SettingsError, which names the option but never tells its value,
    since that may be a secret."""
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "the options"
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields) or "none"
            raise SettingsError(f"ENGINE_OPTION: the engine {engine} has no option {name!r}; it has {known}") from None
        raise SettingsError(f"ENGINE_OPTION {name}: {first['msg']}") from None


def _object(variable: str) -> dict[str, Any]:
    try:
        options = orjson.loads(variable)
    except orjson.JSONDecodeError as error:
        raise SettingsError(f"PENSTOCK_ENGINE_OPTIONS: not JSON: {error}") from None
    if not isinstance(options, dict):
        raise SettingsError('PENSTOCK_ENGINE_OPTIONS: it must be a JSON object, like {"key": "value"}')
    return options


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
