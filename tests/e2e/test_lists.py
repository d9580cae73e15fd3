"""Lists of stored objects: only the last page may be short, and a page's cost follows its size."""

import io
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.e2e.harness import Stack, standalone_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("lists"), "scripted", scripted_step_ms=1) as running:
        yield running


def test_a_page_of_stored_chats_is_full_and_costs_what_it_holds(stack: Stack) -> None:
    chats = stack.client(api_key="stores-many").chat.completions
    messages: Any = [{"role": "user", "content": "keep this"}]
    made = chats.create(model="scripted", messages=messages, max_tokens=3, store=True, metadata={"run": "usual"})
    copies = copied(stack, made.id, 5000)
    commands = lambda: stack.redis.info("stats")["total_commands_processed"]  # noqa: E731
    before = commands()

    first = chats.list(limit=1, order="desc")
    rare = chats.list(metadata={"run": "rare"})
    none = chats.list(model="another")

    assert ([chat.id for chat in first.data], first.has_more) == ([copies[-4]], True)  # the last three are unfinished
    assert ([chat.id for chat in rare.data], rare.has_more) == ([copies[4000]], False)
    assert (none.data, none.has_more) == ([], False)
    assert commands() - before < 900  # two of the requests looked at every chat, in slices
    before = commands()
    assert [chat.id for chat in chats.list(limit=1, after=copies[2000]).data] == [copies[2001]]
    assert commands() - before < 50  # this includes the workers' heartbeats


def copied(stack: Stack, chat_id: str, count: int) -> list[str]:
    """Copy a chat; return the ids of the copies. One copy is of another run, and the last three are unfinished."""
    (index,) = [key for key in stack.redis.scan_iter("penstock:chats:*") if stack.redis.zscore(key, chat_id)]
    record: Any = stack.redis.get(f"penstock:chat:{chat_id}")
    ids = [f"chatcmpl-copy{at}" for at in range(count)]
    with stack.redis.pipeline(transaction=False) as pipe:
        for at, copy in enumerate(ids):
            run = b"rare" if at == 4000 else b"usual"
            pipe.set(f"penstock:chat:{copy}", record.replace(chat_id.encode(), copy.encode()).replace(b"usual", run))
            pipe.zadd(index, {copy: 2_000_000_000_000 + at})
            if at < count - 3:
                pipe.copy(f"rq:job:{chat_id}", f"rq:job:{copy}")
                pipe.copy(f"penstock:log:{chat_id}", f"penstock:log:{copy}")
        pipe.execute()
    return ids


def test_files_of_a_purpose_are_listed_however_many_others_came_later(stack: Stack) -> None:
    files = stack.client(api_key="keeps-files").files

    def upload(purpose: Literal["batch", "user_data"]) -> str:
        return files.create(file=("rows.jsonl", io.BytesIO(b"{}")), purpose=purpose).id

    wanted = [upload("batch"), upload("batch")]
    for _ in range(4):
        upload("user_data")

    first = files.list(purpose="batch", limit=1)

    assert ([file.id for file in first.data], first.has_more) == ([wanted[1]], True)
    assert [file.id for file in first] == wanted[::-1]  # in pages
    assert [file.id for file in files.list(purpose="batch", limit=1, order="asc")] == wanted


def test_batches_that_are_known_no_more_leave_no_empty_page(stack: Stack) -> None:
    client = stack.client(api_key="keeps-batches")
    rows = client.files.create(file=("rows.jsonl", io.BytesIO(b"{}")), purpose="batch").id
    batch = client.batches.create(input_file_id=rows, endpoint="/v1/chat/completions", completion_window="24h")
    (index,) = [key for key in stack.redis.scan_iter("penstock:batches:*") if stack.redis.zscore(key, batch.id)]
    stack.redis.zadd(index, {f"batch_gone{at}": time.time() + at for at in range(50)})

    listed = client.batches.list(limit=1)

    assert ([each.id for each in listed.data], listed.has_more) == ([batch.id], False)
