"""The queue in Redis. Each method encodes the arguments of the Lua verb that has its name, calls it, and decodes its
answer; it decides nothing. The verbs of every job are enqueue, claim, append and settle, all in `lifecycle.lua`.
`lua.py` links a verb with the parts that it needs."""

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from shared import rq_view
from shared.domain.codec import decode_event, decode_job, encode_event, encode_job
from shared.domain.errors import DecodeError, QueueUnavailable, StorageFull
from shared.domain.events import Cancelled, Completed, Deadline, Expired, Failed, Finished, Outcome
from shared.domain.job import Job, Kind
from shared.domain.lifecycle import Move, State, after, settling
from shared.queue import lua
from shared.queue.protocols import (
    ANY_ROOM,
    LOST,
    SETTLED,
    Accepted,
    Bounds,
    Delivery,
    Idempotency,
    InUse,
    Origin,
    RateLimits,
    RateLimitsLeft,
    Room,
    StoredRecord,
    Write,
    finished,
)
from shared.queue.refusals import refusal_of
from shared.redis import keys
from shared.redis.client import translated

VECTORS_TTL_S = 60
NOTHING_TAKEN = {"tokens": 0, "output": 0, "cost_micros": 0}


class RedisQueue:
    """The queue in one Redis. A job may be taken over after `lease_ms` of silence, up to `attempts_max` claims without
    progress. `job_ttl_s` and `failed_ttl_s` are lifetimes after the end.

    `blocking` is a second client whose reads wait; they are never re-sent.
    """

    def __init__(
        self,
        client: Redis,
        *,
        blocking: Redis | None = None,
        lease_ms: int = 3000,
        attempts_max: int = 3,
        job_ttl_s: int = 3600,
        failed_ttl_s: int = 7 * 86400,
        worker_ttl_s: int = 10,
        keep_requests: bool = False,
        confirm: Callable[[], Awaitable[tuple[Any, ...]]] | None = None,
    ) -> None:
        """With `keep_requests`, the requests of jobs that this object enqueues are kept as long as the jobs, whatever
        their end. `confirm` returns, once, the command that is sent on the same connection after a job is written and
        before it is accepted. The command answers how many Redis hold the job; () is none."""
        self._redis = client
        self._blocking = blocking or client
        self.scripts = {name: client.register_script(verb.script) for name, verb in lua.verbs().items()}
        self._lease_ms = lease_ms
        self._attempts_max = attempts_max
        self._job_ttl_s = job_ttl_s
        self._failed_ttl_s = failed_ttl_s
        self._worker_ttl_s = worker_ttl_s
        self._keep_requests = keep_requests
        self._confirm = confirm
        self._confirmation: tuple[Any, ...] | None = None if confirm else ()

    async def enqueue(
        self,
        job: Job,
        *,
        bounds: Bounds,
        subscriber: str = "",
        idempotency: Idempotency | None = None,
        rate_limits: RateLimits | None = None,
        render_options: str = "",
        trace: str = "",
        record: StoredRecord | None = None,
        origin: Origin | None = None,
    ) -> Accepted:
        fields = self.fields(job) | {
            "subscribers": keys.events_channel(subscriber) if subscriber else "",
            "idempotency": idempotency.key if idempotency else "",
            "fingerprint": idempotency.fingerprint if idempotency else "",
            "view": render_options,
            "trace": trace,
            **_limits(rate_limits),
            **_origin(origin),
        }
        answer = await self._call_confirmed(
            "enqueue",
            model=job.model,
            id=job.id,
            jobs_max=bounds.jobs_max,
            tokens_max=bounds.tokens_max,
            bytes_max=bounds.bytes_max,
            fields=flat(fields),
            records=[_content(record)] if record else [],
        )
        verdict, number, wait_s = answer[0].decode(), int(answer[1]), int(answer[2]) / 1000
        if refused := refusal_of(verdict, number, wait_s, model=job.model, rate_limits=rate_limits, record=record):
            raise refused
        return Accepted(
            job_id=answer[3].decode(),
            created_ms=int(answer[4]),
            ahead=number,
            wait_s=wait_s,
            attached=verdict == "attached",
            limits_left=_left(answer[5:9]) if rate_limits else None,
            tokens_ahead=int(answer[9]) if len(answer) > 9 else 0,
        )

    async def claim(
        self, model: str, *, worker: str, limit: int, room: Room = ANY_ROOM, wait_ms: int = 0
    ) -> list[Delivery]:
        claimed = await self._claim(model, worker, limit, room)
        if claimed or not wait_ms:
            return claimed
        with translated():  # wake() in job.lua pushes onto this list
            woken: Any = await self._blocking.blpop([keys.wake(model)], timeout=wait_ms / 1000)
        return await self._claim(model, worker, limit, room) if woken else []

    async def append(self, writes: Sequence[Write]) -> dict[str, int]:
        rows = [
            {
                "id": write.delivery.job.id,
                "claim_token": write.delivery.claim_token,
                "first": write.events[0].seq,
                "events": [encode_event(event) for event in write.events],
            }
            for write in writes
        ]
        return {job_id.decode(): length for job_id, length in await self._call("append", writes=rows)}

    async def settle(self, write: Write, *, worker: str) -> int:
        delivery, outcome = write.delivery, finished(write).outcome
        tokens, output = _tokens(delivery.job, outcome, write.events[-1].seq)
        answer = await self._call(
            "settle",
            model=delivery.job.model,
            id=delivery.job.id,
            claim_token=delivery.claim_token,
            status=after(State.STARTED, settling(outcome)),
            iso=iso_now(),
            ttl_s=self._ttl_s(delivery.job, outcome),
            worker=worker,
            exc=_rq_traceback(outcome),
            tokens=tokens,
            output=output,
            cost_micros=outcome.usage.cost_micros if isinstance(outcome, Completed) else 0,
            first=write.events[0].seq,
            events=[encode_event(event) for event in write.events],
        )
        return answer if isinstance(answer, int) else {b"settled": SETTLED, b"lost": LOST}[answer]

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        rows = [{"model": d.job.model, "id": d.job.id, "claim_token": d.claim_token} for d in held]
        lost = await self._call(
            "renew", worker=worker, iso=iso_now(), ttl_s=self._worker_ttl_s, lease_ms=self._lease_ms, held=rows
        )
        return [job_id.decode() for job_id in lost]

    async def release(self, held: Sequence[Delivery], *, worker: str) -> None:
        for model in {delivery.job.model for delivery in held}:
            mine = [{"id": d.job.id, "claim_token": d.claim_token} for d in held if d.job.model == model]
            await self._call("release", model=model, worker=worker, held=mine)

    async def attach(self, job_id: str, *, subscriber: str) -> State | None:
        return _state(await self._call("attach", id=job_id, channel=keys.events_channel(subscriber)))

    async def cancel(self, job_id: str, *, by: str = "its client") -> State | None:
        return _state(await self._call("cancel", **self._cancelling(job_id), by=by))

    async def leave(self, job_id: str, *, subscriber: str) -> None:
        await self._call("leave", **self._cancelling(job_id), channel=keys.events_channel(subscriber))

    async def replay(self, job_id: str, *, as_id: str, model: str = "") -> tuple[State | None, str]:
        with translated():
            found: Any = await self._redis.hmget(keys.job(job_id), ["status", "payload", "view", "month", "cost_month"])
        status, payload, render_options, month, cost_month = found
        if not payload:
            return _state(status or b""), ""
        before = decode_job(payload)
        job = replace(before, id=as_id, model=model or before.model, created_ms=int(time.time() * 1000), due_ms=0)
        cost_month = iso_now()[:7] if month or cost_month else ""
        about = {"view": render_options or "", "replay_of": job_id, "cost_month": cost_month}
        answer = await self._call("replay", origin=job_id, id=as_id, fields=flat(self.fields(job) | about))
        verdict, replayed_as = answer[0].decode(), answer[1].decode()
        return (State.FAILED if verdict in ("ok", "replayed") else _state(answer[0])), replayed_as

    async def charge(self, tenant: str, rate_limits: RateLimits) -> float:
        return int(await self._call("charge", tenant=tenant, limits=_limits(rate_limits)["limits"])) / 1000

    async def store(self, record: StoredRecord) -> None:
        about = {"tenant": record.tenant, "id": record.id, "created_ms": record.created_ms}
        verdict, used = await self._call("store", **about, records=[_content(record)])
        if verdict == b"storage_full":
            raise StorageFull(used=used, bytes_max=record.tenant_bytes_max)

    async def discard(self, record: StoredRecord) -> None:
        await self._call("discard", tenant=record.tenant, key=record.key, index=record.index, id=record.id)

    async def depth(self, model: str) -> int:
        with translated():
            return int(await self._redis.llen(keys.queue(model)))

    async def pause(self, model: str, *, paused: bool) -> None:
        with translated():
            await (self._redis.set(keys.paused(model), 1) if paused else self._redis.delete(keys.paused(model)))

    async def forget_model(self, model: str) -> InUse:
        jobs, workers = await self._call("forget_model", model=model)
        return InUse(jobs=jobs, workers=workers)

    def fields(self, job: Job) -> dict[str, Any]:
        """Return the fields of a job's hash; `enqueue` writes those that are not empty."""
        return rq_view.job_fields(job, iso_now(), self._failed_ttl_s) | {
            "payload": encode_job(job),
            "created_ms": job.created_ms,
            "class": job.priority.rank,
            "tenant": job.tenant,
            "weight": job.weight,
            "prompt_tokens": job.prompt_tokens_estimate,
            "output_max": -1 if job.output_tokens_max is None else job.output_tokens_max,
            "width": job.sequences if job.sequences > 1 else "",
            "patience_ms": job.queue_deadline_ms,
            "run_ms": job.run_deadline_ms,
            "keep_s": job.keep_s or "",
            "not_before_ms": job.not_before_ms or "",
            "due_ms": job.due_ms or "",
            "keep_request": int(self._keep_requests) or "",
            "notify": int(job.notify) or "",
        }

    def _ttl_s(self, job: Job, outcome: Outcome) -> int:
        move = settling(outcome)
        if move is Move.FAIL:
            return self._failed_ttl_s
        if move is Move.COMPLETE and job.kind in (Kind.EMBEDDING, Kind.TOKENS):
            return min(self._job_ttl_s, VECTORS_TTL_S)  # vectors are large, and read once
        return self._job_ttl_s

    async def _claim(self, model: str, worker: str, limit: int, room: Room) -> list[Delivery]:
        token = uuid.uuid4().hex
        rows = await self._call(
            "claim",
            model=model,
            worker=worker,
            claim_token=token,
            iso=iso_now(),
            lease_ms=self._lease_ms,
            limit=limit,
            room=room.sequences,
            attempts_max=self._attempts_max,
            widest=room.widest,
            tenants=sorted(room.tenants),
            quotas=[asdict(quota) for quota in room.quotas],
        )
        claimed = [await self._delivery(model, worker, token, row) for row in rows]
        return [delivery for delivery in claimed if delivery]

    async def _delivery(self, model: str, worker: str, token: str, row: list[Any]) -> Delivery | None:
        """Decode a claimed job; one that cannot be decoded fails at once and keeps its raw bytes."""
        job_id, attempt, payload, log, late, left_ms, alone, waited_ms, trace, quota = row
        try:
            return Delivery(
                job=decode_job(payload),
                claim_token=token,
                attempt=attempt,
                log=tuple(decode_event(seq, data) for seq, data in enumerate(log)),
                late=Deadline(late.decode()) if late else None,
                left_ms=None if left_ms == b"" else float(left_ms),
                isolated=bool(alone),
                waited_ms=waited_ms,
                trace=trace.decode(),
                quota=quota.decode(),
            )
        except DecodeError as error:
            event = encode_event(Finished(seq=len(log), outcome=Failed(code="internal_error", message=str(error))))
            failure = {"status": State.FAILED, "ttl_s": self._failed_ttl_s, "exc": rq_view.traceback_field(str(error))}
            about = {"model": model, "id": job_id, "claim_token": token, "worker": worker, "iso": iso_now()}
            await self._call("settle", **about, **failure, **NOTHING_TAKEN, first=len(log), events=[event])
            return None

    def _cancelling(self, job_id: str) -> dict[str, Any]:
        return {"id": job_id, "iso": iso_now(), "ttl_s": self._job_ttl_s, "event": CANCELLED}

    async def _call_confirmed(self, verb: str, **named: Any) -> Any:
        """Call the verb and await the confirmation. Raises QueueUnavailable without one; the job stays until it is
        cancelled.
        """
        if self._confirm and self._confirmation is None:
            self._confirmation = await self._confirm()
        if not self._confirmation:
            return await self._call(verb, **named)
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                await self.scripts[verb](args=lua.verbs()[verb].arguments(named), client=pipe)
                pipe.execute_command(*self._confirmation)
                answer, held = await pipe.execute()
        if not (held[0] if isinstance(held, list) else held):
            raise QueueUnavailable("the job was written, but neither disk nor replica confirmed it in time")
        return answer

    async def _call(self, verb: str, **named: Any) -> Any:
        with translated():
            return await self.scripts[verb](args=lua.verbs()[verb].arguments(named))


CANCELLED = encode_event(Finished(seq=0, outcome=Cancelled()))


def _content(record: StoredRecord) -> dict[str, Any]:
    bounds = {"ttl_s": record.ttl_s, "bytes_max": record.tenant_bytes_max}
    return {"key": record.key, "data": record.data, "index": record.index, **bounds}


def flat(fields: dict[str, Any]) -> list[Any]:
    """List names and values in turn, without empty ones: each would take 60 bytes of Redis's memory."""
    return [part for name, value in fields.items() if value != "" for part in (name, value)]


def _limits(rate_limits: RateLimits | None) -> dict[str, str]:
    if rate_limits is None:
        return {}
    limits = f"{rate_limits.requests} {rate_limits.tokens} {rate_limits.jobs} {rate_limits.month_tokens}"
    return {"limits": limits, "month": rate_limits.month}


def _origin(origin: Origin | None) -> dict[str, str]:
    if origin is None:
        return {}
    return {"replay_of": origin.job_id, "cost_month": iso_now()[:7] if origin.counts_cost else ""}


def _left(answer: list[int]) -> RateLimitsLeft | None:
    """Decode what is left of the rate limits; None for a job that was there before."""
    if not answer:
        return None
    requests, tokens, requests_ms, tokens_ms = answer
    reset = {"requests_reset_s": requests_ms / 1000, "tokens_reset_s": tokens_ms / 1000}
    return RateLimitsLeft(requests=requests, tokens=tokens, **reset)


def iso_now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _state(answer: bytes) -> State | None:
    return State(answer.decode()) if answer else None


def _tokens(job: Job, outcome: Outcome, events: int) -> tuple[int, int]:
    """Return how many tokens a job took, in all and as output; without a count, one token an event is assumed."""
    if isinstance(outcome, Completed) and job.kind is Kind.TOKENS:
        return job.prompt_tokens_estimate, 0  # it took a worker's time, but no tokens of a model
    if isinstance(outcome, Completed):
        usage = outcome.usage
        return usage.prompt_tokens + usage.completion_tokens, usage.completion_tokens
    return (job.prompt_tokens_estimate + events, 0) if events else (0, 0)


def _rq_traceback(outcome: object) -> str:
    match outcome:
        case Failed(code=code, message=message, detail=detail):
            return rq_view.traceback_field(detail or f"{code}: {message}")
        case Expired(deadline=deadline):
            return rq_view.traceback_field(f"deadline_exceeded: the {deadline} deadline passed")
        case _:
            return ""
