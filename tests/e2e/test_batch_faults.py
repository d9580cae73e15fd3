"""Batches that lose their file, their key or their process while they run, and too many batches at once."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from shared.redis import keys
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.e2e.test_batches import chat, completed, ended, rows_of, start, upload

ADMIN = {"authorization": "Bearer admin-of-this-test"}
LINE_MAX = 50_000
LONG = 100_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings: dict[str, Any] = {"admin_key": "admin-of-this-test", "body_bytes_max": LINE_MAX, "batch_requests": 2}
    settings |= {"batches_at_once": 1, "batches_open_max": 3, "scripted_step_ms": 5, "scripted_tokens": 1_000_000}
    with standalone_stack(tmp_path_factory.mktemp("faults"), "scripted", **settings) as stack:
        yield stack


def made_key(stack: Stack, **limits: Any) -> tuple[str, openai.OpenAI]:
    """Create a key; return its id and a client that uses it."""
    made = httpx.post(f"{stack.base}/admin/keys", json={"name": "of a test"} | limits, headers=ADMIN).json()
    return made["id"], stack.client(api_key=made["secret"])


def record(stack: Stack, batch_id: str) -> dict[str, Any]:
    """Read a batch's record from Redis, since no client's key can request it."""
    found: Any = stack.redis.get(keys.batch(batch_id))
    return dict(json.loads(found))


def test_a_batch_whose_file_is_gone_fails_and_says_so(stack: Stack) -> None:
    client = stack.client(api_key="missing file")
    batch_id = start(client, [chat(0), chat(1, tokens=1000), chat(2), chat(3)]).id
    eventually("one is done", lambda: completed(client, batch_id) > 0, seconds=30)
    (Path(stack.environment["PENSTOCK_FILES"]) / client.batches.retrieve(batch_id).input_file_id).unlink()

    stack.redis.delete(keys.batch_lease(batch_id))  # the next process has to read the file again

    batch = ended(client, batch_id)
    assert batch.status == "failed"
    assert [(error.code, error.param) for error in batch.errors.data] == [("file_not_found", "input_file_id")]
    assert "line-0" in [row["custom_id"] for row in rows_of(client, batch.output_file_id)]
    eventually("nothing runs", lambda: stack.running() == 0)


def test_a_batch_that_cannot_get_on_can_be_cancelled(stack: Stack) -> None:
    client = stack.client(api_key="stuck")
    batch = start(client, [chat(0), *[chat(n, tokens=LONG) for n in (1, 2, 3)]])
    eventually("one is done", lambda: completed(client, batch.id) == 1, seconds=30)
    path = Path(stack.environment["PENSTOCK_FILES"]) / batch.input_file_id
    path.unlink()
    path.mkdir()
    assert stack.api
    stack.redis.delete(keys.batch_lease(batch.id))
    eventually("it is in trouble", lambda: "IsADirectoryError" in stack.api.log.read_text())  # type: ignore[union-attr]

    client.batches.cancel(batch.id)

    ending = ended(client, batch.id, seconds=10)
    assert ending.status == "cancelled"
    assert [row["custom_id"] for row in rows_of(client, ending.output_file_id)] == ["line-0"]
    eventually("nothing runs", lambda: stack.running() == 0)


def test_a_file_that_a_batch_reads_cannot_be_deleted(stack: Stack) -> None:
    client = stack.client(api_key="deleting")
    batch = start(client, [chat(0, tokens=LONG)])

    with pytest.raises(openai.ConflictError) as refused:
        client.files.delete(batch.input_file_id)
    assert refused.value.code == "file_in_use"
    assert batch.id in refused.value.message
    assert client.files.content(batch.input_file_id).text
    client.batches.cancel(batch.id)
    ended(client, batch.id)

    assert client.files.delete(batch.input_file_id).deleted


def test_a_line_over_the_bound_of_a_body_fails_the_file_and_is_named(stack: Stack) -> None:
    client = stack.client(api_key="long line")

    batch = ended(client, start(client, [chat(0), chat(1, user="x" * LINE_MAX)]).id)

    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("request_too_large", 2)]


def test_a_batch_stops_when_its_key_is_revoked(stack: Stack) -> None:
    key_id, client = made_key(stack, models=["scripted"])
    rows = [chat(0), chat(1, tokens=LONG), *[chat(n, model="another") for n in range(2, 50)]]
    batch_id = start(client, [rows[0], rows[1], rows[1] | {"custom_id": "also"}, *rows[2:]]).id
    eventually("one is done", lambda: completed(client, batch_id) == 1, seconds=30)

    httpx.delete(f"{stack.base}/admin/keys/{key_id}", headers=ADMIN)

    eventually("it ends", lambda: record(stack, batch_id)["status"] == "failed", seconds=30)
    found = record(stack, batch_id)
    assert [error["code"] for error in found["errors"]] == ["invalid_api_key"]
    assert (found["total"], found["completed"], found["failed"]) == (51, 1, 50)
    eventually("nothing runs", lambda: stack.running() == 0)


def test_a_batch_stops_when_its_key_expires(stack: Stack) -> None:
    key_id, client = made_key(stack)
    batch_id = start(client, [chat(0, tokens=LONG)]).id
    eventually("it runs", lambda: client.batches.retrieve(batch_id).status == "in_progress")

    change = httpx.patch(f"{stack.base}/admin/keys/{key_id}", json={"expires_in_s": 1}, headers=ADMIN)

    assert change.status_code == 200
    eventually("it ends", lambda: record(stack, batch_id)["status"] == "failed", seconds=30)
    httpx.patch(f"{stack.base}/admin/keys/{key_id}", json={"expires_in_s": 0}, headers=ADMIN)
    batch = eventually("the key lives again", lambda: _retrieved(client, batch_id))
    assert [error.code for error in batch.errors.data] == ["invalid_api_key"]
    assert [row["error"]["code"] for row in rows_of(client, batch.error_file_id)] == ["invalid_api_key"]


def test_lines_run_with_what_the_key_may_do_when_they_begin(stack: Stack) -> None:
    key_id, client = made_key(stack)
    batch_id = start(client, [chat(0), *[chat(n, tokens=500) for n in range(1, 6)]]).id
    eventually("one is done", lambda: completed(client, batch_id) > 0, seconds=30)

    httpx.patch(f"{stack.base}/admin/keys/{key_id}", json={"models": ["another"]}, headers=ADMIN)

    batch = ended(client, batch_id)
    assert batch.status == "completed"
    assert {row["response"]["status_code"] for row in rows_of(client, batch.error_file_id)} == {403}


def test_batches_of_a_key_wait_for_each_other_and_too_many_are_refused(stack: Stack) -> None:
    client = stack.client(api_key="many")
    file_id = upload(client, [chat(0, tokens=LONG)])
    ask: dict[str, Any] = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first, second, third = (client.batches.create(**ask) for _ in range(3))

    with pytest.raises(openai.RateLimitError) as refused:
        client.batches.create(**ask)
    assert int(refused.value.response.headers["retry-after"]) > 0
    other = stack.client(api_key="another")
    assert ended(other, start(other, [chat(0)]).id).status == "completed"
    eventually("the first runs", lambda: client.batches.retrieve(first.id).status == "in_progress")
    assert [client.batches.retrieve(each.id).status for each in (second, third)] == ["validating"] * 2

    client.batches.cancel(second.id)
    assert ended(client, second.id, seconds=10).status == "cancelled"
    assert client.batches.retrieve(first.id).status == "in_progress"
    client.batches.cancel(first.id)
    eventually("the next begins", lambda: client.batches.retrieve(third.id).status == "in_progress")
    client.batches.cancel(third.id)
    ended(client, third.id)


def test_a_lease_is_renewed_while_a_slow_disk_is_read(stack: Stack) -> None:
    """A pipe in place of the file makes its first reader wait as long as the test needs."""
    client = stack.client(api_key="slow disk")
    first = start(client, [chat(0, tokens=LONG)])
    eventually("the first runs", lambda: client.batches.retrieve(first.id).status == "in_progress")
    second = start(client, [chat(0)])
    path = Path(stack.environment["PENSTOCK_FILES"]) / second.input_file_id
    rows = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    client.batches.cancel(first.id)
    eventually("it is taken", lambda: stack.redis.exists(keys.batch_lease(second.id)))
    eventually("time passes", lambda: 0 < _lease_ms(stack, second.id) < 9000)
    eventually("it is renewed", lambda: _lease_ms(stack, second.id) > 9500)

    assert client.batches.retrieve(second.id).status == "validating"
    path.write_bytes(rows)
    eventually("it is valid", lambda: client.batches.retrieve(second.id).status == "in_progress")
    path.write_bytes(rows)
    assert ended(client, second.id).status == "completed"


def test_a_process_that_was_frozen_writes_nothing_of_a_batch_that_others_ended(stack: Stack) -> None:
    """The process is stopped until its lease has run out; another process's result must stay as it is."""
    assert stack.api
    client = stack.client(api_key="frozen")
    batch_id = start(client, [chat(0), chat(1), *[chat(n, tokens=2000) for n in range(2, 8)]]).id
    eventually("it is under way", lambda: completed(client, batch_id) >= 2, seconds=30)
    lease: Any = stack.redis.get(keys.batch_lease(batch_id))
    _, base = stack.start_api()
    elsewhere = stack.client(base_url=f"{base}/v1", api_key="frozen")

    os.kill(stack.api.popen.pid, signal.SIGSTOP)
    try:
        eventually("it is taken over", lambda: _leased_otherwise(stack, batch_id, lease), seconds=30)
        elsewhere.batches.cancel(batch_id)
        batch = ended(elsewhere, batch_id)
        rows = [rows_of(elsewhere, file_id) for file_id in (batch.output_file_id, batch.error_file_id)]
    finally:
        os.kill(stack.api.popen.pid, signal.SIGCONT)
    ended(client, start(client, [chat(0)]).id)  # the process still works, and has looked at every batch

    after = client.batches.retrieve(batch_id)
    assert after == batch
    assert after.status == "cancelled"
    assert [rows_of(client, file_id) for file_id in (after.output_file_id, after.error_file_id)] == rows
    assert sorted(row["custom_id"] for part in rows for row in part) == [f"line-{n}" for n in range(8)]
    assert stack.redis.ttl(keys.batch(batch_id)) > 0
    results = [each.id for each in client.files.list() if batch_id in each.id]
    assert sorted(results) == sorted([batch.output_file_id, batch.error_file_id])


def _leased_otherwise(stack: Stack, batch_id: str, lease: bytes) -> bool:
    found: Any = stack.redis.get(keys.batch_lease(batch_id))
    return found not in (None, lease)


def _lease_ms(stack: Stack, batch_id: str) -> int:
    left: Any = stack.redis.pttl(keys.batch_lease(batch_id))
    return int(left)


def _retrieved(client: openai.OpenAI, batch_id: str) -> Any:
    try:
        return client.batches.retrieve(batch_id)
    except openai.AuthenticationError:
        return None
    except openai.NotFoundError:  # until the key is looked up again, it names another tenant
        return None
