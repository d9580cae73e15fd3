"""The pages that describe the API are correct, and work without the internet."""

import re
from typing import Any

import httpx
import jsonschema
import pytest

from api.http.docs import EXAMPLES
from tests.e2e.harness import Stack


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(builtin: Stack, path: str) -> None:
    page = httpx.get(builtin.base + path)

    wanted = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert len(wanted) >= 2
    for url in wanted:
        assert url.startswith("/"), url
        assert httpx.get(builtin.base + url).status_code == 200, url


def test_answers_are_what_the_document_says(builtin: Stack) -> None:
    """This checks answers besides those of the examples."""
    stored = builtin.post(EXAMPLES["ChatCompletionRequest"] | {"store": True, "logprobs": True}).json()["id"]
    ask = EXAMPLES["ResponseRequest"]
    response = httpx.post(f"{builtin.base}/v1/responses", json=ask, timeout=60).json()["id"]
    of_these = {"{completion_id}": stored, "{response_id}": response, "{job_id}": stored, "{name}": "penstock-tiny"}
    seen = 0
    for path, verb, operation in operations(builtin):
        url = path
        for name, value in of_these.items():
            url = url.replace(name, value)
        if verb == "get" and "{" not in url and not path.startswith("/admin") and not path.endswith("/events"):
            answer = httpx.get(builtin.base + url)
            assert answer.status_code == 200, (url, answer.text)
            assert_described(builtin, operation, answer.json())
            seen += 1
    assert seen >= 10


def assert_described(builtin: Stack, operation: dict[str, Any], answer: Any) -> None:
    document = httpx.get(f"{builtin.base}/openapi.json").json()
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer, schema | {"components": document["components"]})
    described = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    assert answer.keys() <= described.keys()


def operations(builtin: Stack) -> list[tuple[str, str, dict[str, Any]]]:
    paths = httpx.get(f"{builtin.base}/openapi.json").json()["paths"]
    return [(path, verb, operation) for path, verbs in paths.items() for verb, operation in verbs.items()]


def test_every_example_can_be_sent_as_it_is(builtin: Stack) -> None:
    sent = set()
    for path, verb, operation in operations(builtin):
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        if name in EXAMPLES and not path.startswith(("/admin", "/v1/moderations")):
            url = builtin.base + path.replace("{name}", "penstock-tiny")
            answer = httpx.request(verb, url, json=EXAMPLES[name], timeout=60)
            assert answer.status_code == 200, (path, answer.text)
            assert_described(builtin, operation, answer.json())
            sent.add(name)

    assert sent == EXAMPLES.keys() - {"ModerationRequest", "NewKey", "ReplayRequest"}


def test_every_operation_says_what_its_errors_look_like(builtin: Stack) -> None:
    for path, verb, operation in operations(builtin):
        assert {"200", "4XX", "5XX"} == operation["responses"].keys(), (verb, path)


@pytest.mark.parametrize("path", ["/v1/models", "/health/live", "/docs", "/openapi.json"])
def test_head_has_the_headers_of_get_and_no_body(builtin: Stack, path: str) -> None:
    with httpx.Client(base_url=builtin.base) as client:
        head, get = client.head(path), client.get(path)

    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == str(len(get.content))
