"""Closes a JSON schema as most people mean it: an object has the properties that are listed, and no others, unless the
schema says otherwise. JSON Schema itself would allow any others. Pure."""

from collections.abc import Iterator
from typing import Any

# Keywords by which a schema says more about an object's properties than the list of them.
OPENING = frozenset(
    {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "minProperties", "$ref"}
)
# Keywords whose schemas hold beside their parent's for the same object, so that closing one would forbid the other's.
COMBINED = ("allOf", "not", "if", "then", "else", "dependentSchemas")
ABOUT = frozenset({"$ref", "$defs", "definitions", "$schema", "$id", "title", "description", "default", "examples"})
BRANCHES = ("anyOf", "oneOf")
MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def closed(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` in each object that lists its properties and says nothing
    of others. Schemas that are combined with others, also by reference, stay as they are."""
    return _closed(schema, "#", frozenset(_combined_references(schema, combined=False)))


def closed_parameters(schema: dict[str, Any] | None) -> dict[str, Any]:
    """Return the closed schema of a function's parameters; a function without any takes none."""
    if not schema or schema == {"type": "object"}:
        return NO_PARAMETERS
    found: dict[str, Any] = closed(schema)
    return found


def _closed(schema: Any, path: str, kept: frozenset[str]) -> Any:
    if isinstance(schema, list):
        return [_closed(each, f"{path}/{index}", kept) for index, each in enumerate(schema)]
    if not isinstance(schema, dict) or path in kept:
        return schema
    made = {key: _closed_keyword(key, value, f"{path}/{key}", kept, schema) for key, value in schema.items()}
    lists_all = (
        "properties" in schema and not (schema.keys() & OPENING) and not (schema.keys() & {*COMBINED, *BRANCHES})
    )
    return made | {"additionalProperties": False} if lists_all else made


def _closed_keyword(key: str, value: Any, path: str, kept: frozenset[str], parent: dict[str, Any]) -> Any:
    if key in MAPPINGS and isinstance(value, dict):
        return {name: _closed(each, f"{path}/{_escaped(name)}", kept) for name, each in value.items()}
    if (
        key in COMBINED
        or (key in BRANCHES and "properties" in parent)
        or key in ("const", "enum", "default", "examples")
    ):
        return value
    return _closed(value, path, kept)


def _combined_references(schema: Any, *, combined: bool) -> Iterator[str]:
    """Yield the references from schemas that are combined with others."""
    if isinstance(schema, list):
        for each in schema:
            yield from _combined_references(each, combined=combined)
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and (combined or schema.keys() - ABOUT):
            yield reference
        for key, value in schema.items():
            beside = key in COMBINED or (key in BRANCHES and "properties" in schema)
            yield from _combined_references(value, combined=combined or beside)


def _escaped(name: str) -> str:
    """Return the name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
