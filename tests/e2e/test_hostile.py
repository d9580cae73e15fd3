"""Every hostile request gets an answer that names its fault, and the next client is served."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Stack

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
WRONG: list[Any] = [None, True, -1, 1.5, 10**30, "", "x", [], [[]], {}, {"a": {}}, "\x00", "\U0001f600" * 10]
DEEP = 50_000


@pytest.fixture(autouse=True)
def served_afterwards(scripted: Stack) -> Iterator[None]:
    yield
    assert scripted.post(ASK).status_code == 200


def post(stack: Stack, body: bytes, path: str = CHAT, **headers: str) -> httpx.Response:
    return httpx.post(
        stack.base + path, content=body, headers={"content-type": "application/json", **headers}, timeout=60
    )


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize(
    "field",
    [
        "model",
        "messages",
        "temperature",
        "stop",
        "n",
        "stream",
        "tools",
        "tool_choice",
        "seed",
        "logit_bias",
        "response_format",
        "structured_outputs",
        "chat_template_kwargs",
        "user",
    ],
)
def test_a_wrong_type_is_never_our_error(scripted: Stack, field: str) -> None:
    with httpx.Client(base_url=scripted.base, timeout=60) as client:
        for value in WRONG:
            answer = client.post(CHAT, json=ASK | {field: value})
            assert answer.status_code in (200, 400, 404), (field, value, answer.text)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"stop": ["x"] * 100_000}, "stop"),
        ({"logit_bias": {str(n): 1 for n in range(100_000)}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(10_000)]}, "tools"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:6379/"}}]}
                ]
            },
            "messages.content",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_data": "file:///etc/passwd"}}]}
                ]
            },
            "messages.content",
        ),
        ({"chat_template": "{% for i in range(10**9) %}{% endfor %}"}, "chat_template"),
        ({"chat_template_kwargs": {"a": {"b": 1}} | {str(n): n for n in range(1000)}}, "chat_template_kwargs"),
    ],
    ids=str,
)
def test_too_much_is_refused_by_name(scripted: Stack, change: dict[str, Any], param: str) -> None:
    assert refused(scripted.post(ASK | change))["param"] == param


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"messages":['])
def test_deep_json_is_refused(scripted: Stack, opening: str) -> None:
    refused(post(scripted, opening.encode() * DEEP))
    closing = {"[": "]", '{"a":': "1}", '{"messages":[': "]}"}[opening]
    refused(post(scripted, (opening * 900 + "1" * (opening == "[") + closing[-1:] * 900).encode()))


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe\x00", b'{"model": "\xc3\x28"}', b'{"model": "\\ud800"}', b"nan", b"null", b"[]", b'"x"']
)
def test_what_is_no_object_of_text_is_refused(scripted: Stack, body: bytes) -> None:
    refused(post(scripted, body))


def test_a_lone_surrogate_in_a_message_is_refused_or_answered(scripted: Stack) -> None:
    body = json.dumps(ASK).replace('"content": "x"', '"content": "\\ud800"').encode()

    assert post(scripted, body).status_code in (200, 400)


def test_a_body_of_100_mb_is_refused_before_it_is_read(scripted: Stack) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += "content-length: 100000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", scripted.port)) as connection:
        connection.sendall(head.encode())

        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1/../..", "x" * 5000, "[::1", "a b"])
def test_a_foreign_host_header_is_refused_without_keys(scripted: Stack, host: str) -> None:
    answer = httpx.get(f"{scripted.base}/v1/models", headers={"host": host})

    assert answer.status_code in (400, 403)
    assert host not in str(answer.headers)


@pytest.mark.parametrize(
    "job_id", ["..%2f..%2fetc%2fpasswd", "%00", "rq:job:*", "a" * 5000, "*", "x y", "%0d%0aset-cookie:a"]
)
def test_ids_name_nothing_but_jobs(scripted: Stack, job_id: str) -> None:
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", f"/v1/batches/{job_id}", f"/v1/files/{job_id}"):
        refused(httpx.get(scripted.base + path), 404)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-penstock-priority": "root"},
        {"x-penstock-grace-s": "nan"},
        {"x-penstock-queue-deadline-s": "1e999"},
        {"idempotency-key": "x" * 10_000},
    ],
    ids=str,
)
def test_hostile_headers_are_refused(scripted: Stack, headers: dict[str, str]) -> None:
    answer = post(scripted, json.dumps(ASK).encode(), **headers)

    assert answer.status_code in (400, 413), answer.text
