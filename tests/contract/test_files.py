"""The bytes that a tenant's files may take, and that only its own files count; in a real Redis."""

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Connection, Redis

from api.stores.files import COUNT_HOLDS_S, COUNTED_AT_LEAST, FileRecord, FileStore
from shared.domain.errors import FilesFull, QueueUnavailable
from shared.redis import keys

BYTES_MAX = 100_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(client: Redis, tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path, client, tenant_bytes_max=BYTES_MAX, clock=clock)


async def upload(store: FileStore, size: int, *, tenant: str = "t", lifetime_s: int = 0) -> FileRecord:
    source = io.BytesIO(b"x" * size)
    return await store.create(source, tenant=tenant, filename="f", purpose="user_data", lifetime_s=lifetime_s)


async def counted(client: Redis, tenant: str = "t") -> int:
    found: Any = await client.hget(keys.files_bytes(tenant), "bytes")
    return int(found)


async def test_a_file_that_does_not_fit_leaves_nothing_and_keeps_no_other_tenant_out(
    client: Redis, store: FileStore, tmp_path: Path
) -> None:
    first = await upload(store, 60_000)

    with pytest.raises(FilesFull, match=r"take 60000 of the 100000 bytes.*40001 bytes.*DELETE /v1/files") as refused:
        await upload(store, 40_001)

    assert (refused.value.used, refused.value.bytes_max, refused.value.param) == (60_000, BYTES_MAX, "file")
    assert os.listdir(tmp_path) == [first.id]
    assert await client.zrange(keys.files_of("t"), 0, -1) == [first.id.encode()]
    await upload(store, 40_000)
    await upload(store, 60_000, tenant="another")


async def test_uploads_at_once_do_not_pass_together(store: FileStore, tmp_path: Path) -> None:
    uploads = [upload(store, 30_000) for _ in range(10)]

    ends = await asyncio.gather(*uploads, return_exceptions=True)

    assert [type(end) for end in ends if not isinstance(end, FileRecord)] == [FilesFull] * 7
    assert len(os.listdir(tmp_path)) == 3


async def test_bytes_come_back_when_a_file_is_deleted_and_when_it_expires(
    client: Redis, store: FileStore, clock: Clock
) -> None:
    deleted, _ = await upload(store, 50_000), await upload(store, 50_000, lifetime_s=60)

    for _ in range(2):  # a second deletion subtracts nothing
        await store.delete(deleted.id, tenant="t")
    assert await counted(client) == 50_000
    clock.now_s += 61
    await store.sweep()

    assert await counted(client) == 0
    await upload(store, BYTES_MAX)


async def test_small_files_are_bounded_as_well(store: FileStore) -> None:
    for _ in range(BYTES_MAX // COUNTED_AT_LEAST):
        await upload(store, 0)

    with pytest.raises(FilesFull):
        await upload(store, 0)


async def test_results_of_batches_count_and_are_never_refused(client: Redis, store: FileStore) -> None:
    result = store.described("file-r", tenant="t", filename="r", purpose="batch_output", size=150_000, lifetime_s=60)

    for command in store.registration(result):
        await client.execute_command(*command)

    with pytest.raises(FilesFull, match="take 150000 of"):
        await upload(store, 1)
    await store.delete("file-r", tenant="t")
    await upload(store, BYTES_MAX)


async def test_a_count_that_drifted_is_right_again(client: Redis, store: FileStore, clock: Clock) -> None:
    """A process of an older release neither counts the files it registers nor subtracts those it deletes."""
    known, gone = await upload(store, 10_000), await upload(store, 90_000)
    await client.delete(keys.file(gone.id))
    await client.zrem(keys.files_of("t"), gone.id)
    with pytest.raises(FilesFull):
        await upload(store, 20_000)

    clock.now_s += COUNT_HOLDS_S
    await upload(store, 20_000)
    assert await counted(client) == 30_000
    await client.delete(keys.files_bytes("t"))
    await store.delete(known.id, tenant="t")
    await upload(store, 30_000)

    assert await counted(client) == 50_000
    assert 0 < await client.ttl(keys.files_bytes("t")) <= COUNT_HOLDS_S


async def test_a_registration_that_is_sent_twice_counts_once(client: Redis, store: FileStore) -> None:
    record = await upload(store, 60_000)

    await store._register(record)

    assert await counted(client) == 60_000


async def test_bytes_of_a_file_that_redis_refused_are_not_kept(client: Redis, store: FileStore, tmp_path: Path) -> None:
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueUnavailable):
            await upload(store, 10)
    finally:
        await client.config_set("maxmemory", "2gb")

    assert os.listdir(tmp_path) == []


async def test_many_records_cost_one_round_to_redis_and_one_to_the_disk(
    client: Redis, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [await upload(store, 1) for _ in range(20)]
    foreign, gone = await upload(store, 1, tenant="another"), await upload(store, 1)
    store.path(gone.id).unlink()
    asked = [each.id for each in (kept[0], foreign, *kept[1:], gone)]
    threads, sent, to_thread, send = 0, 0, asyncio.to_thread, Connection.send_packed_command

    async def counted_thread(*args: Any, **options: Any) -> Any:
        nonlocal threads
        threads += 1
        return await to_thread(*args, **options)

    async def counted_send(*args: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return await send(*args, **options)

    monkeypatch.setattr(asyncio, "to_thread", counted_thread)
    monkeypatch.setattr(Connection, "send_packed_command", counted_send)

    found = await store.records([*asked, "file-unknown"], tenant="t")

    assert found == kept
    assert (sent, threads) == (1, 1)
