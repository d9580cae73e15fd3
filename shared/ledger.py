"""Jobs as an operator looks at them: lists by state, one in full. Reads only; all changes go through the queue."""

import base64
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared import keys
from shared.errors import NotFound
from shared.lifecycle import State
from shared.redis_client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    id: str
    model: str
    state: State
    attempts: int
    replays: int
    enqueued_at: str
    started_at: str
    ended_at: str
    worker: str
    traceback: str
    payload: str


class Ledger:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def models(self) -> list[str]:
        prefix = keys.queue("")
        with translated():
            members: Any = await self._redis.smembers(keys.QUEUES)
        return sorted(name.decode().removeprefix(prefix) for name in members)

    async def ids(self, model: str, state: State, *, limit: int = 100) -> list[str]:
        """The newest ended ones, or the oldest waiting ones, first."""
        with translated():
            if state is State.QUEUED:
                waiting: Any = await self._redis.lrange(keys.queue(model), 0, limit - 1)
                return [job_id.decode() for job_id in waiting]
            found: Any = await self._redis.zrevrange(keys.registry(state, model), 0, limit - 1)
        return [member.decode().partition(":")[0] for member in found]

    async def all_failed(self, model: str) -> AsyncIterator[str]:
        with translated():
            async for member, _ in self._redis.zscan_iter(keys.registry(State.FAILED, model)):
                yield member.decode()

    async def record(self, job_id: str) -> JobRecord:
        """Raise NotFound when there is no such job."""
        with translated():
            fields: Any = await self._redis.hgetall(keys.job(job_id))
            results: Any = await self._redis.xrevrange(keys.results(job_id), count=1)
        if not fields:
            raise NotFound(f"There is no job {job_id}.")
        text = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
        return JobRecord(
            id=job_id,
            model=text.get("origin", ""),
            state=State(text["status"]),
            attempts=int(text.get("attempt", 0)),
            replays=int(text.get("replays", 0)),
            enqueued_at=text.get("enqueued_at", ""),
            started_at=text.get("started_at", ""),
            ended_at=text.get("ended_at", ""),
            worker=text.get("worker_name", ""),
            traceback=_traceback(results),
            payload=text.get("payload", ""),
        )


def _traceback(results: Any) -> str:
    packed = results[0][1].get(b"exc_string") if results else None
    return zlib.decompress(base64.b64decode(packed)).decode() if packed else ""
