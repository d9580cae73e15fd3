"""Batches as their clients see them, in Redis: many requests from a file, done when there is room."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from api.stores.json_store import JsonStore, encode
from api.stores.pages import Body, PageRequest, Pick, page
from shared.domain.errors import LimitReached, NotFound
from shared.redis import keys
from shared.redis.client import RUN_COMMANDS, Command, translated, words_of

LIFETIME_S = 30 * 86400  # of what is known of a batch, after its end
LISTED_S = 90 * 86400  # longer than any window and what is kept after it
LEASE_S = 10
FULL_RETRY_S = 60
CREATE = """
local input, record, index, open = unpack(KEYS)
local id, data, now, listed_s, open_max = unpack(ARGV)
if redis.call('EXISTS', input) == 0 then return 'gone' end
if #redis.call('ZINTER', 2, index, open) >= tonumber(open_max) then return 'full' end
redis.call('SET', record, data)
redis.call('ZADD', index, now, id)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now - listed_s)
redis.call('EXPIRE', index, listed_s)
redis.call('SADD', open, id)
return 'ok'
"""
# The commands run if the lease is still the one of this token.
FENCED = f"""
{RUN_COMMANDS}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
run_commands(2)
return 1
"""


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


class LeaseLost(Exception):
    """Another process may be working on the batch: this one must write nothing more of it."""


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


class Lease:
    """The right to work on a batch, for one taking of it. The token is new each time, so that a process which was
    frozen, lost its lease and took it again does not mistake the new lease for the old one."""

    def __init__(self, batch_id: str, token: str, *, clock: Callable[[], float]) -> None:
        self.batch_id = batch_id
        self.token = token
        self._clock = clock
        self._until_s = clock() + LEASE_S

    def require(self) -> None:
        """Raise LeaseLost if the lease may have run out by this process's own clock. It costs no call to Redis, and
        stops a process that was frozen before it does anything else."""
        if self._clock() >= self._until_s:
            raise LeaseLost

    def renewed(self, asked_at_s: float) -> None:
        self._until_s = asked_at_s + LEASE_S


class BatchStore(JsonStore[Batch]):
    """One process at a time works on a batch: the one that holds its lease, and only that one writes."""

    def __init__(
        self,
        client: Redis,
        *,
        owner: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        readers = {"status": Status}
        super().__init__(client, Batch, key=keys.batch, name="batch", param="batch_id", readers=readers)
        self._owner = owner
        self._clock = clock
        self._monotonic = monotonic
        self._create = client.register_script(CREATE)
        self._fenced = client.register_script(FENCED)

    async def create(self, batch: Batch, *, open_max: int) -> None:
        """Raises NotFound when the input file is gone, LimitReached when `open_max` of the tenant have not ended."""
        record, index = keys.batch(batch.id), keys.batches_of(batch.tenant)
        names = [keys.file(batch.input_file_id), record, index, keys.BATCHES]
        with translated():
            verdict: Any = await self._create(
                keys=names, args=[batch.id, encode(batch), self._clock(), LISTED_S, open_max]
            )
        if verdict == b"gone":
            raise NotFound(f"There is no file {batch.input_file_id}.", param="input_file_id")
        if verdict == b"full":
            raise LimitReached(
                f"{open_max} batches of this key have not ended; wait for one to end, or cancel one.",
                limit="limit_batches",
                retry_after_s=FULL_RETRY_S,
            )

    async def page(self, tenant: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.stores.pages` says."""
        return await page(self._redis, keys.batches_of(tenant), asked, pick)

    async def open(self) -> list[str]:
        with translated():
            found: Any = await self._redis.smembers(keys.BATCHES)
        return sorted(batch_id.decode() for batch_id in found)

    async def forget(self, batch_id: str) -> None:
        """A batch whose record is gone is not open; one that only a later release can read is."""
        with translated():
            if not await self._redis.exists(keys.batch(batch_id)):
                await self._redis.srem(keys.BATCHES, batch_id)

    async def ask_to_cancel(self, batch_id: str) -> None:
        """Whoever works on it looks for this."""
        with translated():
            await self._redis.set(keys.batch_cancel(batch_id), 1, ex=LIFETIME_S)

    async def to_cancel(self, batch_ids: Sequence[str]) -> set[str]:
        """Those of these whose cancel was asked for."""
        if not batch_ids:
            return set()
        with translated():
            asked: Any = await self._redis.mget([keys.batch_cancel(batch_id) for batch_id in batch_ids])
        return {batch_id for batch_id, found in zip(batch_ids, asked, strict=True) if found}

    async def take(self, batch_id: str) -> Lease | None:
        """None when a process has it already."""
        lease = Lease(batch_id, f"{self._owner}.{secrets.token_hex(4)}", clock=self._monotonic)
        with translated():
            taken = await self._redis.set(keys.batch_lease(batch_id), lease.token, nx=True, ex=LEASE_S)
        return lease if taken else None

    async def keep(self, lease: Lease) -> None:
        """Raises LeaseLost. So does everything else that is given a lease."""
        asked_at_s = self._monotonic()
        await self.write(lease, ("EXPIRE", keys.batch_lease(lease.batch_id), LEASE_S))
        lease.renewed(asked_at_s)

    async def release(self, lease: Lease) -> None:
        await self.write(lease, ("DEL", keys.batch_lease(lease.batch_id)))

    async def save(self, lease: Lease, batch: Batch, *more: Command) -> None:
        """The record, and what is to be written together with it. An ended batch is kept for a while."""
        written: list[Command] = [("SET", keys.batch(batch.id), encode(batch))]
        if batch.status.ended:
            written = [(*written[0], "EX", LIFETIME_S), ("SREM", keys.BATCHES, batch.id)]
        await self.write(lease, *more, *written)

    async def move(self, lease: Lease, batch: Batch, status: Status, *more: Command, **changes: Any) -> Batch:
        """To another status, noting when."""
        moved = replace(batch, status=status, at={**batch.at, status: int(self._clock())}, **changes)
        await self.save(lease, moved, *more)
        return moved

    async def write(self, lease: Lease, *commands: Command) -> None:
        """All of the commands, or none of them when the lease is another's by now."""
        args = [lease.token, *words_of(commands)]
        with translated():
            written = await self._fenced(keys=[keys.batch_lease(lease.batch_id)], args=args)
        if not written:
            raise LeaseLost


def to_work_on(
    batches: Iterable[Batch], *, at_once: int, now_s: float, cancelled: Collection[str] = frozenset()
) -> list[str]:
    """Of each tenant the oldest `at_once`; the others wait in `validating`. Whatever is only to be ended, since it was
    cancelled or has expired, waits for nobody."""
    ending, working, of_tenant = list[str](), list[str](), Counter[str]()
    for batch in sorted(batches, key=lambda each: (each.at[Status.VALIDATING], each.id)):
        if batch.id in cancelled or now_s > batch.expires_s:
            ending.append(batch.id)
        elif of_tenant[batch.tenant] < at_once:
            of_tenant[batch.tenant] += 1
            working.append(batch.id)
    return ending + working
