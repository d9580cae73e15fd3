"""Where waiting jobs stand: what is served before them, and how long that may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.domain.lifecycle import State, state_of
from shared.queue.lua import verbs
from shared.redis.client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """So many jobs and tokens are served before a queued job, as an estimate. `wait_s` is 0 while nobody can tell. A
    job in another state has nothing before it."""

    state: State
    ahead: int = 0
    tokens_ahead: int = 0
    wait_s: float = 0.0


class PlaceReader:
    def __init__(self, client: Redis) -> None:
        self._locate = verbs()["locate"]
        self._script = client.register_script(self._locate.script)

    async def read(self, job_ids: Sequence[str]) -> dict[str, Place]:
        """Return the places of these jobs, without those that are gone. Raises QueueUnavailable."""
        with translated():
            rows: Any = await self._script(args=self._locate.arguments({"ids": list(job_ids)}))
        return {
            job_id.decode(): Place(state=state_of(state), ahead=jobs, tokens_ahead=tokens, wait_s=wait_ms / 1000)
            for job_id, state, jobs, tokens, wait_ms in rows
        }
