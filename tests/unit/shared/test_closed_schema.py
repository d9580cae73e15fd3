"""Objects are closed where their properties are listed and nothing is said of others."""

from typing import Any

import pytest

from shared.domain.closed_schema import NO_PARAMETERS, closed, closed_parameters

NAMED: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
CLOSED = NAMED | {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (NAMED, CLOSED),
        ({"type": "array", "items": NAMED}, {"type": "array", "items": CLOSED}),
        ({"prefixItems": [NAMED]}, {"prefixItems": [CLOSED]}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": NAMED}},
            {"$ref": "#/$defs/a", "$defs": {"a": CLOSED}},
        ),
        (
            {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": NAMED}},
            {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": CLOSED}, "additionalProperties": False},
        ),
    ],
    ids=["object", "items", "tuple", "branch", "reference", "reference of a property"],
)
def test_listed_properties_are_all_there_are(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        NAMED | {"additionalProperties": True},
        NAMED | {"additionalProperties": {"type": "integer"}},
        NAMED | {"patternProperties": {"^x": {}}},
        NAMED | {"minProperties": 2},
        {"allOf": [NAMED, {"properties": {"age": {}}}]},
        NAMED | {"anyOf": [{"properties": {"age": {}}}]},
        NAMED | {"if": {"properties": {"name": {"const": "x"}}}, "then": {"required": ["age"]}},
        {"$ref": "#/$defs/a", "required": ["age"], "$defs": {"a": NAMED}},
        {"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": NAMED}},
        {"const": {"properties": 1}},
        {"properties": {}, "default": {"properties": {}}, "additionalProperties": True},
        True,
    ],
)
def test_what_says_otherwise_stays_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"properties": {"type": "string"}, "allOf": NAMED}}

    assert closed(schema)["additionalProperties"] is False
    assert closed(schema)["properties"] == {"properties": {"type": "string"}, "allOf": CLOSED}


@pytest.mark.parametrize("schema", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_function_without_parameters_takes_none(schema: Any) -> None:
    assert closed_parameters(schema) == NO_PARAMETERS
