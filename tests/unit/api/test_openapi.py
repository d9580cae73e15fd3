"""The OpenAPI document is complete."""

from collections.abc import Iterator
from typing import Any

import pytest

from api.app import make_app
from api.http.operations import BODIES, OTHERS, PARAMETERS
from shared.settings import load_settings

STREAMED = {
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/responses"),
    ("post", "/v1/messages"),
    ("get", "/v1/responses/{response_id}"),
    ("get", "/v1/jobs/{job_id}/events"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_app(load_settings()).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield (verb, path), operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for each in node.values():
            yield from references(each)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def within(document: dict[str, Any], node: Any) -> set[str]:
    """Return the names of all schemas that are reachable from here."""
    found, open_ = set[str](), [*references(node)]
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_ += references(document["components"]["schemas"][name])
    return found


def test_there_is_an_introduction(document: dict[str, Any]) -> None:
    assert len(document["info"]["description"]) > 500


def test_every_field_of_every_request_is_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    named = {name for _, operation in operations(document) for name in within(document, operation.get("requestBody"))}

    assert len(named) > 40
    for name in named:
        for field, about in schemas[name].get("properties", {}).items():
            assert len(about.get("description", "")) > 8, f"{name}.{field}"


def test_every_parameter_and_every_operation_is_described(document: dict[str, Any]) -> None:
    used = set()
    for key, operation in operations(document):
        assert operation.get("summary"), key
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), (key, parameter["name"])
            used.add(parameter["name"])

    assert used == PARAMETERS.keys()


def test_every_operation_has_the_schema_of_its_200(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    keys = set()
    for key, operation in operations(document):
        keys.add(key)
        content = operation["responses"]["200"]["content"]
        assert content, key
        for kind, about in content.items():
            schema = about["schema"]
            assert schema.get("$ref", "").rpartition("/")[2] in schemas or schema.get("description"), (key, kind)
        assert ("text/event-stream" in content) == (key in STREAMED), key

    assert keys == BODIES.keys() | OTHERS.keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert set(references(document)) <= document["components"]["schemas"].keys()
