"""The records of batches in Redis, as their clients see them."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from api.stores.json_store import JsonStore, RecordKind, encode
from shared.domain.errors import LimitReached, NotFound
from shared.redis import keys
from shared.redis.client import RUN_COMMANDS, Command, translated, words_of

LIFETIME_S = 30 * 86400  # of a batch's record, after its end
LISTED_S = 90 * 86400  # longer than any window and the record's lifetime after it
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
# The commands run only if this token still holds the lease.
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
    """The lease is lost: another process may run the batch, so this one must not write to it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch. `at` has the time of each status that it reached. `total`, `completed` and `failed` count requests.
    `key` is the API key that its jobs count to, if any. `output_lifetime_s` is the lifetime of its result files, 0 for
    ever."""

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
        """Return OpenAI's batch object."""
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
    """The right to run a batch. The token is new with each lease, so that a process that was frozen, lost its lease and
    took it again does not mistake the new lease for the old one."""

    def __init__(self, batch_id: str, token: str, *, clock: Callable[[], float]) -> None:
        self.batch_id = batch_id
        self.token = token
        self._clock = clock
        self._until_s = clock() + LEASE_S

    def require(self) -> None:
        """Raise LeaseLost if the lease may have run out by this process's own clock. This costs no call to Redis, and
        stops a process that was frozen before it does anything else."""
        if self._clock() >= self._until_s:
            raise LeaseLost

    def renewed(self, asked_at_s: float) -> None:
        self._until_s = asked_at_s + LEASE_S


BATCHES = RecordKind(
    record=Batch, key=keys.batch, index=keys.batches_of, name="batch", param="batch_id", readers={"status": Status}
)


class BatchStore(JsonStore[Batch]):
    """Stores batches. One process at a time runs a batch: the holder of its lease, and only the holder writes."""

    def __init__(
        self,
        client: Redis,
        *,
        owner: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(client, BATCHES)
        self._owner = owner
        self._clock = clock
        self._monotonic = monotonic
        self._create = client.register_script(CREATE)
        self._fenced = client.register_script(FENCED)

    async def create(self, batch: Batch, *, open_max: int) -> None:
        """Store a new batch. Raises NotFound when the input file is gone, LimitReached when `open_max` of the tenant's
        batches have not ended."""
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

    async def open(self) -> list[str]:
        with translated():
            found: Any = await self._redis.smembers(keys.BATCHES)
        return sorted(batch_id.decode() for batch_id in found)

    async def close_gone(self, batch_id: str) -> None:
        """Drop a batch whose record is gone from the open ones. One that only a later release can read stays."""
        with translated():
            if not await self._redis.exists(keys.batch(batch_id)):
                await self._redis.srem(keys.BATCHES, batch_id)

    async def ask_to_cancel(self, batch_id: str) -> None:
        """Mark the batch to be cancelled; the process that runs it looks for the mark."""
        with translated():
            await self._redis.set(keys.batch_cancel(batch_id), 1, ex=LIFETIME_S)

    async def to_cancel(self, batch_ids: Sequence[str]) -> set[str]:
        """Return those of the batches that are marked to be cancelled."""
        if not batch_ids:
            return set()
        with translated():
            asked: Any = await self._redis.mget([keys.batch_cancel(batch_id) for batch_id in batch_ids])
        return {batch_id for batch_id, found in zip(batch_ids, asked, strict=True) if found}

    async def claim(self, batch_id: str) -> Lease | None:
        """Take the batch's lease; return None when a process has it already."""
        lease = Lease(batch_id, f"{self._owner}.{secrets.token_hex(4)}", clock=self._monotonic)
        with translated():
            taken = await self._redis.set(keys.batch_lease(batch_id), lease.token, nx=True, ex=LEASE_S)
        return lease if taken else None

    async def keep(self, lease: Lease) -> None:
        """Renew the lease. Raises LeaseLost, like every method that takes a lease."""
        asked_at_s = self._monotonic()
        await self.write(lease, ("EXPIRE", keys.batch_lease(lease.batch_id), LEASE_S))
        lease.renewed(asked_at_s)

    async def release(self, lease: Lease) -> None:
        await self.write(lease, ("DEL", keys.batch_lease(lease.batch_id)))

    async def save(self, lease: Lease, batch: Batch, *more: Command) -> None:
        """Write the record in one transaction with the commands in `more`. An ended batch is kept for `LIFETIME_S`."""
        written: list[Command] = [("SET", keys.batch(batch.id), encode(batch))]
        if batch.status.ended:
            written = [(*written[0], "EX", LIFETIME_S), ("SREM", keys.BATCHES, batch.id)]
        await self.write(lease, *more, *written)

    async def move(self, lease: Lease, batch: Batch, status: Status, *more: Command, **changes: Any) -> Batch:
        """Move the batch to another status, and note the time."""
        moved = replace(batch, status=status, at={**batch.at, status: int(self._clock())}, **changes)
        await self.save(lease, moved, *more)
        return moved

    async def write(self, lease: Lease, *commands: Command) -> None:
        """Run all of the commands, or none of them if another process has the lease by now."""
        args = [lease.token, *words_of(commands)]
        with translated():
            written = await self._fenced(keys=[keys.batch_lease(lease.batch_id)], args=args)
        if not written:
            raise LeaseLost


def to_work_on(
    batches: Iterable[Batch], *, at_once: int, now_s: float, cancelled: Collection[str] = frozenset()
) -> list[str]:
    """Return the batches to run: the oldest `at_once` of each tenant; the others wait in `validating`. A cancelled or
    expired batch, which only has to end, does not wait."""
    ending, working, of_tenant = list[str](), list[str](), Counter[str]()
    for batch in sorted(batches, key=lambda each: (each.at[Status.VALIDATING], each.id)):
        if batch.id in cancelled or now_s > batch.expires_s:
            ending.append(batch.id)
        elif of_tenant[batch.tenant] < at_once:
            of_tenant[batch.tenant] += 1
            working.append(batch.id)
    return ending + working
