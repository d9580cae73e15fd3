"""Hostile clients: compression bombs, slow readers, half-open connections, crowds. Memory stays bounded."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.harness import Stack, eventually, metric, standalone_stack
from tests.e2e.test_faults import ask

CROWD = 1000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("bounds")
    limits = {"request_timeout_s": 2, "send_timeout_s": 2, "scripted_tokens": 1_000_000}
    with standalone_stack(folder, "scripted", **limits) as running:
        yield running


def connect(stack: Stack) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", stack.port))
    connection.settimeout(10)
    return connection


def memory_mb(stack: Stack) -> float:
    assert stack.api
    return float(psutil.Process(stack.api.popen.pid).memory_info().rss / 2**20)


def request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + data


def test_an_endless_head_is_refused_and_holds_no_memory(stack: Stack) -> None:
    before = memory_mb(stack)
    with connect(stack) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n")
        sent = 0
        try:
            while sent < 100_000_000:
                sent += connection.send(b"x-bomb: " + b"x" * 60_000 + b"\r\n")
        except OSError:
            pass

    assert sent < 10_000_000
    assert memory_mb(stack) < before + 20


def test_a_head_that_is_too_large_gets_431(stack: Stack) -> None:
    with connect(stack) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n" + b"x-a: " + b"x" * 70_000)

        assert connection.recv(100).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost", request({"model": "m"})[:-5]])
def test_a_request_that_never_arrives_whole_is_given_up(stack: Stack, sent: bytes) -> None:
    with connect(stack) as connection:
        connection.sendall(sent)

        try:
            assert connection.recv(10_000) == b""
        except ConnectionResetError:
            return


def test_a_reader_that_stops_reading_is_left_with_bounded_memory(stack: Stack) -> None:
    before = memory_mb(stack)
    body: dict[str, object] = {"model": "scripted", "messages": ask("read me"), "max_tokens": 900_000, "stream": True}
    with connect(stack) as connection:
        connection.sendall(request(body))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")

        eventually("running", stack.running)
        eventually("given up", lambda: stack.running() == 0, seconds=30)
    assert memory_mb(stack) < before + 40
    eventually("no stream is open", lambda: metric(stack.base, "penstock_open_streams") == 0)


def test_a_crowd_that_comes_at_once_is_served(scripted: Stack) -> None:
    """In a house that gives a request its usual time to arrive: so many take long to send theirs on a slow machine."""

    async def crowd() -> list[int]:
        body = {"model": "scripted", "messages": ask("crowd"), "max_tokens": 5, "stream": True}
        limits = httpx.Limits(max_connections=CROWD)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            url = f"{scripted.base}/v1/chat/completions"
            answers = await asyncio.gather(*[client.post(url, json=body) for _ in range(CROWD)])
        return [answer.text.count("[DONE]") for answer in answers if answer.status_code == 200]

    assert asyncio.run(crowd()) == [1] * CROWD


def test_what_is_stored_is_bounded_for_each_key(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "m=scripted", stored_bytes_max=20_000, scripted_tokens=4) as stack:
        client = stack.client(api_key="mine")
        text = "x" * 15_000
        first = client.responses.create(model="m", input=text)

        with pytest.raises(openai.RateLimitError) as refused:
            client.responses.create(model="m", input=text)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], store=True)

        assert refused.value.code == "storage_full"
        assert "Delete" in refused.value.message
        assert len(stack.redis.keys("penstock:response:*")) == 1
        assert client.responses.create(model="m", input=text, store=False).status == "completed"
        assert stack.client(api_key="another").responses.create(model="m", input=text).status == "completed"
        client.responses.delete(first.id)
        assert client.responses.create(model="m", input=text).status == "completed"
