"""A worker pauses an upstream's quota, and corrects it, beside its claims."""

from typing import Any

from redis.asyncio import Redis

from shared.queue import lua
from shared.redis.client import translated

VERBS = ("pause_quota", "spend_quota")


class RedisQuotas:
    def __init__(self, client: Redis) -> None:
        self._scripts = {name: client.register_script(lua.verbs()[name].script) for name in VERBS}

    async def pause(self, name: str, seconds: float) -> None:
        """Let no worker claim a job for this quota for so long. Raises QueueUnavailable."""
        await self._call("pause_quota", name=name, milliseconds=int(seconds * 1000))

    async def spend(self, name: str, *, requests: int, tokens: int) -> None:
        """Take a request that no claim has taken; `requests` and `tokens` are the quota's limits. Raises
        QueueUnavailable."""
        await self._call("spend_quota", name=name, requests=requests, tokens=tokens)

    async def _call(self, verb: str, **named: Any) -> None:
        with translated():
            await self._scripts[verb](args=lua.verbs()[verb].arguments(named))
