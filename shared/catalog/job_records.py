"""Jobs as an operator sees them: lists by state, and one in full. This module only reads; all changes go through the
queue.
"""

import base64
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import NotFound
from shared.domain.job import Priority
from shared.domain.lifecycle import State, state_of
from shared.redis import keys
from shared.redis.client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    id: str
    model: str
    state: State
    attempts: int
    enqueued_at: str
    started_at: str
    ended_at: str
    worker: str
    traceback: str
    payload: str
    view: str
    tenant: str
    priority: Priority
    replay_of: str
    counts_cost: bool  # to its API key
    replayed_as: str
    not_before_ms: int
    due_ms: int
    timeline: list[tuple[int, str]]

    @property
    def reason(self) -> str:
        """Say in one line why the job failed, or why its request was refused."""
        return self.traceback.strip().rpartition("\n")[2]

    @property
    def queued_s(self) -> float:
        """Return when the job was queued, in Unix seconds, by the clock of the process that queued it."""
        return _seconds(self.enqueued_at)

    @property
    def ended_s(self) -> float:
        """Return when the job ended, in Unix seconds, by the clock of the process that ended it; 0 if it has not."""
        return _seconds(self.ended_at)


class JobRecords:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def models(self) -> list[str]:
        prefix = keys.queue("")
        with translated():
            members: Any = await self._redis.smembers(keys.QUEUES)
        return sorted(name.decode().removeprefix(prefix) for name in members)

    async def ids(self, model: str, state: State, *, limit: int = 100) -> list[str]:
        """List waiting and running jobs oldest first, ended jobs newest first."""
        with translated():
            if state is State.QUEUED:
                waiting: Any = await self._redis.lrange(keys.queue(model), 0, limit - 1)
                return [job_id.decode() for job_id in waiting]
            oldest_first = state in (State.SCHEDULED, State.STARTED)
            found: Any = await self._redis.zrange(keys.registry(state, model), 0, limit - 1, desc=not oldest_first)
        return [member.decode().partition(":")[0] for member in found]

    async def model_of_request(self, idempotency_key: str) -> str:
        """Return the model of the job that a request with this key created before; '' if there is none."""
        with translated():
            known: Any = await self._redis.get(keys.idempotency(idempotency_key))
            model: Any = await self._redis.hget(keys.job(known.decode().partition(" ")[0]), "origin") if known else None
        return model.decode() if model else ""

    async def all_failed(self, model: str) -> AsyncIterator[str]:
        with translated():
            async for member, _ in self._redis.zscan_iter(keys.registry(State.FAILED, model)):
                yield member.decode()

    async def records(self, model: str, state: State, *, limit: int) -> list[JobRecord]:
        """Return the records of `ids`, without those that have expired meanwhile."""
        found = [await self.record_or_none(job_id) for job_id in await self.ids(model, state, limit=limit)]
        return [record for record in found if record]

    async def record_or_none(self, job_id: str) -> JobRecord | None:
        try:
            return await self.record(job_id)
        except NotFound:
            return None

    async def record(self, job_id: str) -> JobRecord:
        """Return the job's record. Raises NotFound when there is no such job."""
        with translated():
            fields: Any = await self._redis.hgetall(keys.job(job_id))
            results: Any = await self._redis.xrevrange(keys.results(job_id), count=1)
        if not fields:
            raise NotFound(f"There is no job {job_id}.")
        text = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
        return JobRecord(
            id=job_id,
            model=text.get("origin", ""),
            state=state_of(fields[b"status"]),
            attempts=int(text.get("attempt", 0)),
            enqueued_at=text.get("enqueued_at", ""),
            started_at=text.get("started_at", ""),
            ended_at=text.get("ended_at", ""),
            worker=text.get("worker_name", ""),
            traceback=_traceback(results),
            payload=text.get("payload", ""),
            view=text.get("view", ""),
            tenant=text.get("tenant", ""),
            priority=list(Priority)[int(text.get("class", Priority.STANDARD.rank))],
            replay_of=text.get("replay_of", ""),
            counts_cost="month" in text or "cost_month" in text,
            replayed_as=text.get("replayed_as", ""),
            not_before_ms=int(text.get("not_before_ms", 0)),
            due_ms=int(text.get("due_ms", 0)),
            timeline=[_moment(line) for line in text.get("timeline", "").splitlines()],
        )


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp() if iso else 0


def _moment(line: str) -> tuple[int, str]:
    at, _, what = line.partition(" ")
    return int(at), what


def _traceback(results: Any) -> str:
    packed = results[0][1].get(b"exc_string") if results else None
    return zlib.decompress(base64.b64decode(packed)).decode() if packed else ""
