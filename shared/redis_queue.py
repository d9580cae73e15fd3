"""The queue in Redis: encodes the arguments of `queue.lua` and decodes what it answers. No decision is made here."""

import itertools
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from shared import keys, rq_view
from shared.codec import decode_event, decode_job, encode_event, encode_job
from shared.errors import DecodeError, QueueFull
from shared.events import Cancelled, Expired, Failed, Finished
from shared.job import Job, Kind
from shared.lifecycle import State, after, settling
from shared.queue import Delivery, Write, finished
from shared.redis_client import translated

SCRIPT = keys.lua_prelude() + (Path(__file__).parent / "queue.lua").read_text(encoding="utf-8")
RETRY_AFTER_S = (1, 120)
VECTORS_TTL_S = 60


class RedisQueue:
    """`lease_ms`: silence after which a job may be taken over. `job_ttl_s`, `failed_ttl_s`: lifetimes after the end.

    `blocking` is a second client whose reads wait; they are never re-sent.
    """

    def __init__(
        self,
        client: Redis,
        *,
        blocking: Redis | None = None,
        lease_ms: int = 3000,
        job_ttl_s: int = 3600,
        failed_ttl_s: int = 7 * 86400,
        worker_ttl_s: int = 10,
    ) -> None:
        self._redis = client
        self._blocking = blocking or client
        self._script = client.register_script(SCRIPT)
        self._lease_ms = lease_ms
        self._job_ttl_s = job_ttl_s
        self._failed_ttl_s = failed_ttl_s
        self._worker_ttl_s = worker_ttl_s

    async def enqueue(self, job: Job, *, subscriber: str = "", jobs_max: int) -> int:
        fields = rq_view.job_fields(job, iso_now(), self._failed_ttl_s)
        fields |= {
            "payload": encode_job(job),
            "subscribers": keys.events_channel(subscriber) if subscriber else "",
            "patience_ms": job.patience_ms,
        }
        flat = itertools.chain.from_iterable(fields.items())
        answer, depth, interval_ms = await self._call("enqueue", job.model, job.id, jobs_max, *flat)
        if answer == b"full":
            raise QueueFull(
                f"The queue of model {job.model} is full: {depth} jobs are waiting.",
                depth=depth,
                retry_after_s=retry_after_s(depth, float(interval_ms or 0)),
            )
        return int(depth)

    async def claim(self, model: str, *, worker: str, limit: int, wait_ms: int = 0) -> list[Delivery]:
        claimed = await self._claim(model, worker, limit, ())
        if claimed or not wait_ms:
            return claimed
        entry = await self._wait_for_entry(model, worker, wait_ms)
        return await self._claim(model, worker, limit, entry) if entry else []

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        flat = [x for d in held for x in (d.job.model, d.job.id, d.entry_id, d.exec)]
        lost = await self._call("renew", worker, iso_now(), self._worker_ttl_s, *flat)
        return [job_id.decode() for job_id in lost]

    async def append(self, writes: Sequence[Write]) -> list[str]:
        arguments: list[Any] = []
        for write in writes:
            encoded = [encode_event(event) for event in write.events]
            delivery = write.delivery
            arguments += [delivery.job.id, delivery.exec, write.events[0].seq, len(encoded), *encoded]
        return [job_id.decode() for job_id in await self._call("append", *arguments)]

    async def settle(self, write: Write, *, worker: str) -> bool:
        delivery, outcome = write.delivery, finished(write).outcome
        state = after(State.STARTED, settling(outcome))
        answer = await self._call(
            "settle",
            delivery.job.model,
            delivery.job.id,
            delivery.exec,
            state,
            iso_now(),
            self._failed_ttl_s if state is State.FAILED else self._ended_ttl_s(delivery.job),
            worker,
            _rq_traceback(outcome),
            write.events[0].seq,
            *[encode_event(event) for event in write.events],
        )
        return bool(answer == b"settled")

    async def release(self, delivery: Delivery, *, worker: str) -> None:
        await self._call("release", delivery.job.model, worker, delivery.job.id, delivery.exec, delivery.entry_id)

    async def cancel(self, job_id: str) -> State | None:
        event = encode_event(Finished(seq=0, outcome=Cancelled()))
        return _state(await self._call("cancel", job_id, iso_now(), self._job_ttl_s, event))

    async def replay(self, job_id: str) -> State | None:
        return _state(await self._call("replay", job_id, iso_now()))

    async def depth(self, model: str) -> int:
        with translated():
            return int(await self._redis.llen(keys.queue(model)))

    def _ended_ttl_s(self, job: Job) -> int:
        """Vectors are large and asked for once."""
        return min(self._job_ttl_s, VECTORS_TTL_S) if job.kind is Kind.EMBEDDING else self._job_ttl_s

    async def _claim(self, model: str, worker: str, limit: int, entry: Sequence[bytes]) -> list[Delivery]:
        token = uuid.uuid4().hex
        answer = await self._call("claim", model, worker, token, iso_now(), self._lease_ms, limit, *entry)
        claimed = [await self._delivery(model, worker, token, row) for row in answer]
        return [delivery for delivery in claimed if delivery]

    async def _delivery(self, model: str, worker: str, token: str, row: list[Any]) -> Delivery | None:
        """What a claim answered; a job that cannot be read fails at once and keeps its raw bytes."""
        job_id, entry_id, attempt, payload, log, late = row
        try:
            events = tuple(decode_event(seq, data) for seq, data in enumerate(log))
            return Delivery(
                job=decode_job(payload),
                entry_id=entry_id.decode(),
                exec=token,
                attempt=attempt,
                log=events,
                late=bool(late),
            )
        except DecodeError as error:
            event = encode_event(Finished(seq=len(log), outcome=Failed(code="internal_error", message=str(error))))
            ended = (State.FAILED, iso_now(), self._failed_ttl_s, worker, rq_view.traceback_field(str(error)))
            await self._call("settle", model, job_id, token, *ended, len(log), event)
            return None

    async def _wait_for_entry(self, model: str, worker: str, wait_ms: int) -> Sequence[bytes]:
        """Block until an entry arrives and mark it delivered to us: (entry id, job id), or () in vain."""
        with translated():
            try:
                answer: Any = await self._blocking.xreadgroup(
                    keys.GROUP, worker, {keys.stream(model): ">"}, count=1, block=wait_ms
                )
            except redis.exceptions.ResponseError as error:
                if "NOGROUP" in str(error):
                    return ()
                raise
        for _, entries in answer:
            for entry_id, fields in entries:
                return (entry_id, fields[b"j"])
        return ()

    async def _call(self, verb: str, *arguments: Any) -> Any:
        with translated():
            return await self._script(args=[verb, *arguments])


def retry_after_s(depth: int, interval_ms: float) -> int:
    """When the jobs that wait now will have been served, in whole seconds within `RETRY_AFTER_S`."""
    low, high = RETRY_AFTER_S
    return min(high, max(low, round(depth * interval_ms / 1000)))


def iso_now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _state(answer: bytes) -> State | None:
    return State(answer.decode()) if answer else None


def _rq_traceback(outcome: object) -> str:
    match outcome:
        case Failed(code=code, message=message, detail=detail):
            return rq_view.traceback_field(detail or f"{code}: {message}")
        case Expired():
            return rq_view.traceback_field("deadline_exceeded: no worker had room before the queue deadline")
        case _:
            return ""
