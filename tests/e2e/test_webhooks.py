"""Webhooks tell of ended responses and batches: signed, retried, and never sent inside this network."""

import io
import json
import queue
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Stack, standalone_stack


class Receiver:
    """A server that keeps each webhook, and answers with the given statuses, then with 200."""

    def __init__(self, *statuses: int) -> None:
        told: queue.Queue[tuple[dict[str, str], str]] = queue.Queue()
        answers = list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                told.put((dict(self.headers), body))
                status = answers.pop(0) if answers else 200
                self.send_response(status)
                self.send_header("location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing on the terminal."""

        self.told = told
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def next(self) -> tuple[dict[str, str], str]:
        return self.told.get(timeout=30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("webhooks")
    settings: dict[str, Any] = {"webhook_private": True, "scripted_step_ms": 5}
    with standalone_stack(folder, "scripted", **settings) as stack:
        yield stack


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def hooks(stack: Stack, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{stack.base}/v1", headers={"authorization": f"Bearer {key}"}, timeout=30)


def subscribe(stack: Stack, key: str, url: str, *events: str) -> dict[str, Any]:
    with hooks(stack, key) as client:
        answer = client.post("/webhooks", json={"url": url, "events": list(events)})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_the_end_of_a_response_is_told_so_that_the_client_believes_it(stack: Stack, receiver: Receiver) -> None:
    made = subscribe(stack, "one", receiver.url)
    client = stack.client(api_key="one")
    waited_for = client.responses.create(model="scripted", input="x", max_output_tokens=3, background=True)
    client.responses.create(model="scripted", input="x", max_output_tokens=3)

    headers, body = receiver.next()

    event: Any = client.webhooks.unwrap(body, headers, secret=made["secret"])
    assert (event.type, event.data.id) == ("response.incomplete", waited_for.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + " ", headers, secret=made["secret"])
    assert receiver.told.empty()


@pytest.mark.parametrize(
    ("asked", "event"),
    [({"input": "x"}, "response.completed"), ({"input": "fault:raise@2"}, "response.failed")],
)
def test_each_end_has_its_event(stack: Stack, receiver: Receiver, asked: dict[str, Any], event: str) -> None:
    key = f"each {event}"
    subscribe(stack, key, receiver.url)

    stack.client(api_key=key).responses.create(model="scripted", background=True, **asked)

    assert json.loads(receiver.next()[1])["type"] == event


def test_a_cancel_is_told(stack: Stack, receiver: Receiver) -> None:
    subscribe(stack, "cancelling", receiver.url, "response.cancelled")
    client = stack.client(api_key="cancelling").responses
    made = client.create(model="scripted", input="x", max_output_tokens=100_000, background=True)

    client.cancel(made.id)

    told = json.loads(receiver.next()[1])
    assert (told["type"], told["data"]) in [("response.cancelled", {"id": made.id})]


def test_the_end_of_a_batch_is_told(stack: Stack, receiver: Receiver) -> None:
    subscribe(stack, "batching", receiver.url, "batch.completed", "batch.failed")
    client = stack.client(api_key="batching")
    body = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    for text, end in ((json.dumps(row), "completed"), ("broken", "failed")):
        file_id = client.files.create(file=("rows", io.BytesIO(text.encode())), purpose="batch").id
        batch = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")

        told = json.loads(receiver.next()[1])
        assert (told["type"], told["data"]["id"]) == (f"batch.{end}", batch.id)


def test_who_fails_is_told_again_with_the_same_id(stack: Stack) -> None:
    receiver = Receiver(500, 302)
    subscribe(stack, "again", receiver.url)

    stack.client(api_key="again").responses.create(model="scripted", input="x", background=True)

    first, again = receiver.next(), receiver.next()
    assert first[1] == again[1]
    assert first[0]["webhook-id"] == again[0]["webhook-id"]
    assert int(again[0]["webhook-timestamp"]) - int(first[0]["webhook-timestamp"]) >= 4
    receiver.stop()


def test_a_receiver_that_is_never_done_holds_up_nobody_else(stack: Stack, receiver: Receiver) -> None:
    """The receiver sends a byte of a header now and then, for ever; a timeout per read would never fire."""
    with socket.create_server(("127.0.0.1", 0)) as dripping:
        subscribe(stack, "dripping", f"http://127.0.0.1:{dripping.getsockname()[1]}/")
        subscribe(stack, "quick", receiver.url)
        slow, quick = stack.client(api_key="dripping").responses, stack.client(api_key="quick").responses
        for _ in range(6):
            slow.create(model="scripted", input="x", max_output_tokens=3, background=True)
        dripping.settimeout(30)
        taken, _ = dripping.accept()
        with taken:
            taken.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            made = quick.create(model="scripted", input="x", max_output_tokens=3, background=True)

            _, body = receiver.told.get(timeout=4)

            assert json.loads(body)["data"]["id"] == made.id
            taken.sendall(b"x")


def test_an_endpoint_is_tested_rotated_and_removed(stack: Stack, receiver: Receiver) -> None:
    made = subscribe(stack, "managing", receiver.url)
    with hooks(stack, "managing") as client:
        assert client.post(f"/webhooks/{made['id']}/test").json()["delivered"] is True
        rotated = client.post(f"/webhooks/{made['id']}/rotate").json()
        client.post(f"/webhooks/{made['id']}/test")
        receiver.next()
        headers, body = receiver.next()
        for secret in (made["secret"], rotated["secret"]):
            stack.client().webhooks.verify_signature(body, headers, secret=secret)
        assert [each["id"] for each in client.get("/webhooks").json()["data"]] == [made["id"]]
        assert "secret" not in client.get(f"/webhooks/{made['id']}").json()
        with hooks(stack, "somebody else") as other:
            assert other.get(f"/webhooks/{made['id']}").status_code == 404
            assert other.delete(f"/webhooks/{made['id']}").status_code == 404
        assert client.delete(f"/webhooks/{made['id']}").json()["deleted"] is True
        assert client.get(f"/webhooks/{made['id']}").status_code == 404


def test_a_redirect_is_not_followed(stack: Stack) -> None:
    receiver = Receiver(302)
    made = subscribe(stack, "redirecting", receiver.url)

    with hooks(stack, "redirecting") as client:
        told = client.post(f"/webhooks/{made['id']}/test").json()

    assert (told["delivered"], told["status_code"]) == (False, 302)
    receiver.stop()


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://[::1]/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[64:ff9b::7f00:1]/x",
        "https://[2002:7f00:1::]/x",
        "https://[fec0::1]/x",
        "http://example.com/x",
        "https://user:secret@example.com/x",
        "file:///etc/passwd",
        "https://no.such.host.invalid/x",
        "https:///x",
        "https://example.com:99999/x",
        "x",
    ],
)
def test_nothing_is_sent_into_this_network(scripted: Stack, url: str) -> None:
    with hooks(scripted, "ssrf") as client:
        answer = client.post("/webhooks", json={"url": url})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "url"


def test_an_event_that_there_is_not_is_refused(scripted: Stack) -> None:
    with hooks(scripted, "unknown") as client:
        answer = client.post("/webhooks", json={"url": "https://example.com", "events": ["response.begun"]})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "events"
