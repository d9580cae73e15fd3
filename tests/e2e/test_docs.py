"""The pages that describe the API are true, and whole without the internet."""

import re
from typing import Any

import httpx
import pytest

from api.docs import EXAMPLES
from tests.e2e.harness import Stack


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(builtin: Stack, path: str) -> None:
    page = httpx.get(builtin.base + path)

    wanted = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert len(wanted) >= 2
    for url in wanted:
        assert url.startswith("/"), url
        assert httpx.get(builtin.base + url).status_code == 200, url


def operations(builtin: Stack) -> list[tuple[str, str, dict[str, Any]]]:
    paths = httpx.get(f"{builtin.base}/openapi.json").json()["paths"]
    return [(path, verb, operation) for path, verbs in paths.items() for verb, operation in verbs.items()]


def test_every_example_can_be_sent_as_it_is(builtin: Stack) -> None:
    sent = set()
    for path, verb, operation in operations(builtin):
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        if name in EXAMPLES and not path.startswith("/admin"):
            answer = httpx.request(verb, builtin.base + path, json=EXAMPLES[name], timeout=60)
            assert answer.status_code == 200, (path, answer.text)
            sent.add(name)

    assert sent == EXAMPLES.keys() - {"NewKey", "ReplayRequest"}


def test_every_operation_says_what_its_errors_look_like(builtin: Stack) -> None:
    for path, verb, operation in operations(builtin):
        assert {"200", "4XX", "5XX"} == operation["responses"].keys(), (verb, path)
