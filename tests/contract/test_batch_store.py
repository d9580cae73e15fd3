"""Batches in a real Redis: their leases, their number, and the files that they keep."""

import io
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api.stores.batches import Batch, BatchStore, Lease, LeaseLost, Status
from api.stores.files import FileStore
from shared.domain.errors import FileInUse, LimitReached, NotFound
from shared.redis import keys

CHAT = "/v1/chat/completions"
OPEN_MAX = 3
BYTES_MAX = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(client: Redis, clock: Clock) -> BatchStore:
    return BatchStore(client, owner="api-1", clock=clock, monotonic=clock)


@pytest.fixture
async def files(client: Redis, tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path, client, tenant_bytes_max=BYTES_MAX, clock=clock)


async def upload(files: FileStore, *, tenant: str = "t", lifetime_s: int = 0) -> str:
    record = await files.create(io.BytesIO(b"x"), tenant=tenant, filename="f", purpose="batch", lifetime_s=lifetime_s)
    return record.id


def batch_of(file_id: str, *, name: str = "batch_1", tenant: str = "t") -> Batch:
    at: Any = {Status.VALIDATING: 1000}
    return Batch(
        id=name,
        tenant=tenant,
        key="",
        endpoint=CHAT,
        input_file_id=file_id,
        window_s=3600,
        status=Status.VALIDATING,
        at=at,
    )


async def started(store: BatchStore, files: FileStore, **about: str) -> Batch:
    batch = batch_of(await upload(files), **about)
    await store.create(batch, open_max=OPEN_MAX)
    return batch


async def leased(store: BatchStore, batch_id: str = "batch_1") -> Lease:
    lease = await store.claim(batch_id)
    assert lease
    return lease


async def test_a_lease_has_one_owner(client: Redis, store: BatchStore) -> None:
    lease = await leased(store)

    assert await store.claim("batch_1") is None
    assert await BatchStore(client, owner="api-2").claim("batch_1") is None
    await store.keep(lease)
    await store.release(lease)

    assert await BatchStore(client, owner="api-2").claim("batch_1")


async def test_whoever_lost_its_lease_writes_nothing(client: Redis, store: BatchStore, files: FileStore) -> None:
    batch = await started(store, files)
    lost = await leased(store)
    await client.delete(keys.batch_lease(batch.id))
    other = BatchStore(client, owner="api-2")
    held = await leased(other)
    ended = await other.move(held, batch, Status.COMPLETED)

    for write in (
        lambda: store.save(lost, batch),
        lambda: store.move(lost, batch, Status.CANCELLING, ("SET", "more", 1)),
        lambda: store.keep(lost),
        lambda: store.release(lost),
    ):
        with pytest.raises(LeaseLost):
            await write()

    assert await other.get(batch.id) == ended
    assert await client.exists("more") == 0
    await other.keep(held)


async def test_a_lease_taken_again_is_not_the_one_that_was_lost(client: Redis, store: BatchStore) -> None:
    """A process that was frozen may find the lease free, but its knowledge of the batch is old."""
    lost = await leased(store)
    await client.delete(keys.batch_lease("batch_1"))
    await leased(store)

    with pytest.raises(LeaseLost):
        await store.keep(lost)


async def test_a_lease_is_doubted_as_soon_as_it_may_have_run_out(store: BatchStore, clock: Clock) -> None:
    lease = await leased(store)
    clock.now_s += 9
    lease.require()
    await store.keep(lease)
    clock.now_s += 9
    lease.require()

    clock.now_s += 1
    with pytest.raises(LeaseLost):
        lease.require()


async def test_an_end_and_what_comes_with_it_are_written_together(
    client: Redis, store: BatchStore, files: FileStore
) -> None:
    batch = await started(store, files)
    record = files.described("file-2", tenant="t", filename="r", purpose="batch_output", size=0, lifetime_s=60)
    files.path("file-2").touch()

    await store.move(await leased(store), batch, Status.COMPLETED, *files.registration(record), output_file_id="file-2")

    assert (await store.get(batch.id)).output_file_id == "file-2"
    assert await files.record("file-2", tenant="t") == record
    assert await store.open() == []
    assert await client.ttl(keys.batch(batch.id)) > 0


async def test_batches_that_have_not_ended_are_bounded(store: BatchStore, files: FileStore) -> None:
    made = [await started(store, files, name=f"batch_{number}") for number in range(OPEN_MAX)]

    with pytest.raises(LimitReached):
        await started(store, files, name="one more")
    await store.create(batch_of(await upload(files, tenant="u"), name="another's", tenant="u"), open_max=OPEN_MAX)
    await store.move(await leased(store, made[0].id), made[0], Status.CANCELLED)

    await started(store, files, name="instead")


async def test_a_batch_of_a_file_that_is_gone_is_not_made(store: BatchStore) -> None:
    with pytest.raises(NotFound):
        await store.create(batch_of("file-none"), open_max=OPEN_MAX)

    assert await store.open() == []


async def test_the_input_of_a_batch_is_deleted_after_its_end_only(store: BatchStore, files: FileStore) -> None:
    batch = await started(store, files)

    with pytest.raises(FileInUse, match=batch.id):
        await files.delete(batch.input_file_id, tenant="t")
    assert await files.record(batch.input_file_id, tenant="t")
    await store.move(await leased(store), batch, Status.FAILED)
    await files.delete(batch.input_file_id, tenant="t")

    with pytest.raises(NotFound):
        await files.record(batch.input_file_id, tenant="t")


async def test_a_file_that_expires_in_use_goes_when_it_is_not(
    client: Redis, store: BatchStore, files: FileStore, clock: Clock
) -> None:
    file_id, unused = await upload(files, lifetime_s=3600), await upload(files, lifetime_s=3600)
    batch = batch_of(file_id)
    await store.create(batch, open_max=OPEN_MAX)
    clock.now_s += 3601

    await files.sweep()
    assert await client.zrange(keys.files_of("t"), 0, -1) == [file_id.encode()]
    assert not files.path(unused).exists()
    await store.move(await leased(store), batch, Status.COMPLETED)
    clock.now_s += 61
    await files.sweep()

    assert await client.zrange(keys.files_of("t"), 0, -1) == []


async def test_what_a_later_release_wrote_of_a_batch_can_be_read(
    client: Redis, store: BatchStore, files: FileStore
) -> None:
    batch = await started(store, files)
    data: Any = await client.get(keys.batch(batch.id))

    await client.set(keys.batch(batch.id), data.decode().replace("{", '{"news": 1, ', 1))

    assert await store.get(batch.id) == batch


async def test_a_record_that_cannot_be_read_hides_no_other_and_stays_open(
    client: Redis, store: BatchStore, files: FileStore
) -> None:
    good, bad = await started(store, files, name="good"), await started(store, files, name="bad")
    await client.set(keys.batch(bad.id), '{"status": "of a later release"}')

    assert await store.get_many([bad.id, good.id]) == [good]
    await store.close_gone(bad.id)
    assert await store.open() == ["bad", "good"]
    await client.delete(keys.batch(bad.id))
    await store.close_gone(bad.id)

    assert await store.open() == ["good"]
