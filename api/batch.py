"""Batches as their clients see them, in Redis: many requests from a file, done when there is room."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from api.pages import Asked, Body, Pick, page
from shared import keys
from shared.errors import NotFound
from shared.redis_client import translated

LIFETIME_S = 30 * 86400  # of what is known of a batch, after its end
LISTED_S = 90 * 86400  # longer than any window and what is kept after it
LEASE_S = 10


class Status(StrEnum):
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`at`: when it came to each status. `total`, `completed` and `failed` count requests. `key`: the API key that
    pays, if there is one. `output_lifetime_s`: of the files it makes, 0 for ever."""

    id: str
    tenant: str
    key: str
    endpoint: str
    input_file_id: str
    window_s: int
    status: Status
    at: dict[str, int]
    metadata: dict[str, str] = field(default_factory=dict)
    output_lifetime_s: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str = ""
    error_file_id: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def expires_s(self) -> int:
        return self.at[Status.VALIDATING] + self.window_s

    def body(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        moments = {f"{status}_at": self.at.get(status) for status in Status if status is not Status.VALIDATING}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": f"{self.window_s // 3600}h",
            "status": self.status,
            "output_file_id": self.output_file_id or None,
            "error_file_id": self.error_file_id or None,
            "created_at": self.at[Status.VALIDATING],
            "expires_at": self.expires_s,
            **moments,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata or None,
        }


class BatchStore:
    """One process at a time works on a batch: whoever holds its lease."""

    def __init__(self, client: Redis, *, owner: str, clock: Callable[[], float] = time.time) -> None:
        self._redis = client
        self._owner = owner
        self._clock = clock

    async def create(self, batch: Batch) -> None:
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(keys.batch(batch.id), _encode(batch))
                index, now = keys.batches_of(batch.tenant), self._clock()
                pipe.zadd(index, {batch.id: now})
                pipe.zremrangebyscore(index, "-inf", now - LISTED_S)
                pipe.expire(index, LISTED_S)
                pipe.sadd(keys.BATCHES, batch.id)
                await pipe.execute()

    async def get(self, batch_id: str, *, tenant: str | None = None) -> Batch:
        """Raises NotFound, for a batch of another tenant too."""
        with translated():
            found: Any = await self._redis.get(keys.batch(batch_id))
        batch = _decode(found) if found else None
        if batch is None or (tenant is not None and batch.tenant != tenant):
            raise NotFound(f"There is no batch {batch_id}.", param="batch_id")
        return batch

    async def page(self, tenant: str, asked: Asked, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.pages` says."""
        return await page(self._redis, keys.batches_of(tenant), asked, pick)

    async def move(self, batch: Batch, status: Status, **changes: Any) -> Batch:
        """To another status, noting when; an ended batch is kept for a while."""
        moved = replace(batch, status=status, at={**batch.at, status: int(self._clock())}, **changes)
        await self.save(moved)
        return moved

    async def save(self, batch: Batch) -> None:
        ended = batch.status.ended
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(keys.batch(batch.id), _encode(batch), ex=LIFETIME_S if ended else None)
                if ended:
                    pipe.srem(keys.BATCHES, batch.id)
                await pipe.execute()

    async def ask_to_cancel(self, batch_id: str) -> None:
        """Whoever works on it looks for this."""
        with translated():
            await self._redis.set(keys.batch_cancel(batch_id), 1, ex=LIFETIME_S)

    async def to_cancel(self, batch_id: str) -> bool:
        with translated():
            return bool(await self._redis.exists(keys.batch_cancel(batch_id)))

    async def open(self) -> list[str]:
        with translated():
            found: Any = await self._redis.smembers(keys.BATCHES)
        return sorted(batch_id.decode() for batch_id in found)

    async def lease(self, batch_id: str) -> bool:
        """Take it, or keep it; False when another process has it."""
        key = keys.batch_lease(batch_id)
        with translated():
            if await self._redis.set(key, self._owner, nx=True, ex=LEASE_S):
                return True
            if await self._holder(batch_id) != self._owner:
                return False
            return bool(await self._redis.expire(key, LEASE_S))

    async def release(self, batch_id: str) -> None:
        with translated():
            if await self._holder(batch_id) == self._owner:
                await self._redis.delete(keys.batch_lease(batch_id))

    async def _holder(self, batch_id: str) -> str:
        found: Any = await self._redis.get(keys.batch_lease(batch_id))
        return found.decode() if found else ""


def _encode(batch: Batch) -> str:
    return json.dumps(asdict(batch))


def _decode(data: bytes) -> Batch:
    found = json.loads(data)
    return Batch(**(found | {"status": Status(found["status"])}))
