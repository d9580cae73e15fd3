"""Limits on stored records and on queued bytes, of a tenant and of a queue, in memory and on every kind of Redis."""

from dataclasses import replace

import pytest

from shared.domain.errors import QueueFull, StorageFull
from shared.domain.job import Job
from shared.queue.protocols import Bounds, Idempotency, StoredRecord
from tests.contract.conftest import TEN, Backend
from tests.factories import make_job


def record_of(
    job: Job, text: str = "what was asked", *, ttl_s: int = 60, tenant_bytes_max: int = 10_000
) -> StoredRecord:
    return StoredRecord(
        key=f"penstock:chat:{job.id}",
        id=job.id,
        tenant=job.tenant,
        created_ms=job.created_ms,
        data=text,
        ttl_s=ttl_s,
        tenant_bytes_max=tenant_bytes_max,
        index=f"penstock:chats:{job.tenant}",
    )


async def submit_stored(backend: Backend, text: str, *, ttl_s: int = 60, bounds: Bounds = TEN) -> StoredRecord:
    job = make_job(tenant="t")
    record = record_of(job, text, ttl_s=ttl_s)
    await backend.queue.enqueue(job, bounds=bounds, record=record)
    return record


async def test_a_record_is_stored_with_its_job_and_never_without(backend: Backend) -> None:
    accepted = await submit_stored(backend, "first")
    refused = make_job(tenant="t")

    with pytest.raises(QueueFull):
        await backend.queue.enqueue(refused, bounds=Bounds(jobs_max=1), record=record_of(refused))

    assert await backend.stored(accepted.key)
    assert not await backend.stored(record_of(refused).key)


async def test_a_repeated_request_stores_nothing_of_its_own(backend: Backend) -> None:
    key = Idempotency(key="k", fingerprint="f")
    first, again = make_job(), make_job()
    await backend.queue.enqueue(first, bounds=TEN, idempotency=key, record=record_of(first))

    accepted = await backend.queue.enqueue(again, bounds=TEN, idempotency=key, record=record_of(again))

    assert accepted.attached
    assert await backend.stored(record_of(first).key)
    assert not await backend.stored(record_of(again).key)


async def test_a_tenant_stores_only_so_many_bytes_and_a_refused_job_is_none(backend: Backend) -> None:
    first = await submit_stored(backend, "x" * 6000)
    job = make_job(tenant="t")

    with pytest.raises(StorageFull) as refused:
        await backend.queue.enqueue(job, bounds=TEN, record=record_of(job, "é" * 2000))

    assert 6000 < refused.value.used < refused.value.bytes_max == 10_000
    assert (await backend.channel.read([(job.id, 0)]))[0].state is None
    assert not await backend.stored(record_of(job).key)
    await backend.queue.enqueue(make_job(tenant="t"), bounds=TEN)  # a job that stores nothing is accepted
    other = make_job(tenant="other")
    await backend.queue.enqueue(other, bounds=TEN, record=record_of(other, "x" * 6000))

    await backend.queue.discard(first)
    await backend.queue.discard(first)

    assert not await backend.stored(first.key)
    await submit_stored(backend, "x" * 9000)
    with pytest.raises(StorageFull):
        await submit_stored(backend, "x" * 9000)


async def test_a_record_that_is_replaced_counts_once(backend: Backend) -> None:
    record = await submit_stored(backend, "x" * 6000)

    for size in (7000, 9000, 1000):
        await backend.queue.store(replace(record, data="x" * size))

    with pytest.raises(StorageFull):
        await backend.queue.store(replace(record, data="x" * 9900))
    await submit_stored(backend, "x" * 8000)


async def test_an_expired_record_gives_its_bytes_back(backend: Backend) -> None:
    record = await submit_stored(backend, "x" * 6000, ttl_s=1)
    for _ in range(4):
        await backend.let_leases_run_out()

    await submit_stored(backend, "x" * 9000)

    assert not await backend.stored(record.key)


async def test_a_failed_request_of_a_full_queue_frees_no_bytes_that_it_never_had(backend: Backend) -> None:
    await submit_stored(backend, "x" * 6000)
    job = make_job(tenant="t")
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(job, bounds=Bounds(jobs_max=1), record=record_of(job, "x" * 3000))

    await backend.queue.discard(record_of(job, "x" * 3000))

    with pytest.raises(StorageFull):
        await submit_stored(backend, "x" * 4000)


async def test_bytes_that_wait_are_bounded_and_come_free_again(backend: Backend) -> None:
    bounds = Bounds(jobs_max=100, bytes_max=10_000)
    await backend.queue.enqueue(make_job(prompt="x" * 50_000), bounds=bounds)  # an empty queue accepts any job

    with pytest.raises(QueueFull) as refused:
        await backend.queue.enqueue(make_job(), bounds=bounds)
    assert refused.value.reason == "queue_bytes_full"

    await backend.queue.claim("m", worker="a", limit=1)
    await backend.queue.enqueue(make_job(prompt="x" * 6000), bounds=bounds)
    cancelled = make_job(prompt="x" * 2000)
    await backend.queue.enqueue(cancelled, bounds=bounds)
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(make_job(prompt="x" * 2000), bounds=bounds)
    await backend.queue.cancel(cancelled.id)
    await backend.queue.enqueue(make_job(prompt="x" * 2000), bounds=bounds)
