"""Files and batches by the real client: every request in a file is answered, whichever process dies meanwhile."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Stack, eventually, standalone_stack

CHAT: Any = "/v1/chat/completions"


SETTINGS: dict[str, Any] = {"scripted_step_ms": 5, "scripted_tokens": 1_000_000, "batch_requests": 8}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("batches"), "scripted", **SETTINGS) as stack:
        yield stack


def chat(number: int, *, tokens: int = 5, **more: Any) -> dict[str, Any]:
    body = {"model": "scripted", "messages": [{"role": "user", "content": f"q{number}"}], "max_tokens": tokens}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body | more}


def upload(client: openai.OpenAI, rows: list[Any]) -> str:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return client.files.create(file=("rows.jsonl", io.BytesIO(text.encode())), purpose="batch").id


def start(client: openai.OpenAI, rows: list[Any], endpoint: Any = CHAT) -> Any:
    return client.batches.create(input_file_id=upload(client, rows), endpoint=endpoint, completion_window="24h")


def ended(client: openai.OpenAI, batch_id: str, seconds: float = 60) -> Any:
    def look() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return eventually("the batch ends", look, seconds=seconds)


def completed(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def rows_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_file_comes_back_as_it_was(stack: Stack) -> None:
    client, data = stack.client(api_key="one file"), bytes(range(256)) * 5000

    made = client.files.create(file=("all bytes.bin", io.BytesIO(data)), purpose="user_data")

    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(data),
        "all bytes.bin",
        "user_data",
        "processed",
    )
    assert client.files.content(made.id).content == data
    assert [each.id for each in client.files.list()] == [made.id]
    assert client.files.retrieve(made.id) == made
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_files_of_others_do_not_exist(stack: Stack) -> None:
    mine = stack.client(api_key="mine").files.create(file=("a", b"x"), purpose="user_data")
    theirs = stack.client(api_key="theirs")

    assert list(theirs.files.list()) == []
    for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(mine.id)
    with pytest.raises(openai.NotFoundError):
        theirs.batches.create(input_file_id=mine.id, endpoint=CHAT, completion_window="24h")


@pytest.mark.parametrize("file_id", ["..%2f..%2fetc%2fpasswd", "file-" + "0" * 24, "%00", "../redis"])
def test_an_id_is_never_a_path(stack: Stack, file_id: str) -> None:
    answer = httpx.get(f"{stack.base}/v1/files/{file_id}/content")

    assert answer.status_code == 404


def test_a_file_over_the_limit_is_refused_before_it_is_read(stack: Stack) -> None:
    head = f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: {300_000_000}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.sendall(head.encode())

        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_each_line_is_answered_in_order_or_says_why_not(stack: Stack) -> None:
    client = stack.client()
    rows = [
        chat(0),
        chat(1, n=2),
        chat(2, temperature=9),
        chat(3, model="no-such"),
        chat(4, stream=True),
        chat(5),
        chat(6, store=True),
    ]

    batch = ended(client, start(client, rows).id)

    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (7, 3, 4)
    good = rows_of(client, batch.output_file_id)
    assert [row["custom_id"] for row in good] == ["line-0", "line-1", "line-5"]
    assert [row["response"]["status_code"] for row in good] == [200] * 3
    assert len(good[1]["response"]["body"]["choices"]) == 2
    bad = {row["custom_id"]: row["response"] for row in rows_of(client, batch.error_file_id)}
    assert {name: (row["status_code"], row["body"]["error"]["param"]) for name, row in bad.items()} == {
        "line-2": (400, "temperature"),
        "line-3": (404, "model"),
        "line-4": (400, "stream"),
        "line-6": (400, "store"),
    }
    assert batch.in_progress_at
    assert batch.completed_at


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 3}),
        ("/v1/embeddings", {"input": ["x", "y"]}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 3}),
    ],
)
def test_other_endpoints_are_batched_too(stack: Stack, endpoint: Any, body: dict[str, Any]) -> None:
    client = stack.client()
    rows = [
        {"custom_id": f"{n}", "method": "POST", "url": endpoint, "body": {"model": "scripted"} | body} for n in range(3)
    ]

    batch = ended(client, start(client, rows, endpoint).id)

    assert [row["response"]["status_code"] for row in rows_of(client, batch.output_file_id)] == [200] * 3


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("{broken", "invalid_json_line"),
        ({"custom_id": "a"}, "missing_required_parameter"),
        (chat(0), "duplicate_custom_id"),
        (chat(1) | {"url": "/v1/embeddings"}, "mismatched_endpoint"),
        (chat(1) | {"method": "GET"}, "invalid_method"),
        (chat(1) | {"body": []}, "invalid_body"),
        ("[" * 100_000, "invalid_json_line"),
    ],
)
def test_a_file_with_a_wrong_line_fails_before_anything_runs(stack: Stack, row: Any, code: str) -> None:
    client = stack.client()

    batch = ended(client, start(client, [chat(0), row]).id)

    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]
    assert batch.output_file_id is None


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Stack]:
    """Start a stack whose processes the test may kill."""
    with standalone_stack(tmp_path, "scripted", **SETTINGS) as stack:
        yield stack


def test_a_batch_survives_the_death_of_its_api_and_its_worker(mortal: Stack) -> None:
    """Both are killed in the middle: every line is answered once, and no finished line runs again."""
    _, other = mortal.start_api()
    elsewhere = mortal.client(base_url=f"{other}/v1")
    batch_id = start(mortal.client(), [chat(n, tokens=40) for n in range(60)]).id
    eventually("it is under way", lambda: completed(elsewhere, batch_id) > 5, seconds=30)

    assert mortal.api
    mortal.api.kill()
    mortal.workers[0].kill()
    mortal.add_worker("scripted")

    batch = ended(elsewhere, batch_id, seconds=60)
    rows = rows_of(elsewhere, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{n}" for n in range(60)]
    assert batch.request_counts.completed == 60
    assert all(row["response"]["body"]["usage"]["completion_tokens"] == 40 for row in rows)


def test_a_cancelled_batch_delivers_what_was_done(stack: Stack) -> None:
    client = stack.client()
    rows = [chat(0), chat(1), *[chat(n, tokens=100_000) for n in range(2, 12)]]
    batch_id = start(client, rows).id
    eventually("two are done", lambda: completed(client, batch_id) == 2, seconds=30)

    assert client.batches.cancel(batch_id).status == "cancelling"

    batch = ended(client, batch_id)
    assert batch.status == "cancelled"
    assert [row["custom_id"] for row in rows_of(client, batch.output_file_id)] == ["line-0", "line-1"]
    assert {row["error"]["code"] for row in rows_of(client, batch.error_file_id)} == {"batch_cancelled"}
    eventually("nothing runs", lambda: stack.running() == 0)


def test_batches_are_listed_page_by_page(stack: Stack) -> None:
    client = stack.client(api_key="pages")
    made = [start(client, [chat(0)]).id for _ in range(3)]

    listed = [batch.id for batch in client.batches.list(limit=2)]

    assert sorted(listed) == sorted(made)
    assert client.batches.retrieve(made[0]).metadata is None
    with pytest.raises(openai.NotFoundError):
        stack.client(api_key="another").batches.retrieve(made[0])


def test_files_of_one_key_take_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"files": tmp_path / "files", "files_bytes_max": 20_000}
    with standalone_stack(tmp_path, "m=scripted", **settings) as stack:
        client = stack.client(api_key="mine")
        first = client.files.create(file=("a", b"x" * 15_000), purpose="user_data")

        with pytest.raises(openai.RateLimitError) as refused:
            client.files.create(file=("b", b"x" * 15_000), purpose="user_data")

        assert (refused.value.code, refused.value.param) == ("storage_full", "file")
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert [each.name for each in (tmp_path / "files").iterdir() if each.is_file()] == [first.id]
        client.files.delete(first.id)
        client.files.create(file=("b", b"x" * 15_000), purpose="user_data")
