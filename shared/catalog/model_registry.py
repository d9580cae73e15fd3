"""The models that workers announce. A model stays listed while no worker runs, so that requests can wait for one."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import NotFound
from shared.domain.job import ModelInfo
from shared.redis import keys
from shared.redis.client import translated

MODEL_TTL_S = 7 * 86400


class ModelRegistry:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def announce(self, info: ModelInfo) -> None:
        """List the model and its properties. Every worker does this at its start and with each heartbeat."""
        key = keys.model(info.name)
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hsetnx(key, "created_s", str(info.created_s))
                pipe.hset(key, mapping=_fields(info))
                pipe.expire(key, MODEL_TTL_S)
                pipe.sadd(keys.MODELS, info.name)
                await pipe.execute()

    async def announce_absent(self, infos: Sequence[ModelInfo]) -> None:
        """List models that no worker has served yet. What a worker told of a model is kept."""
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for info in infos:
                    key = keys.model(info.name)
                    for name, value in {**_fields(info), "created_s": info.created_s}.items():
                        pipe.hsetnx(key, name, str(value))
                    pipe.expire(key, MODEL_TTL_S)
                    pipe.sadd(keys.MODELS, info.name)
                await pipe.execute()

    async def models(self) -> list[ModelInfo]:
        with translated():
            members: Any = await self._redis.smembers(keys.MODELS)
        names = sorted(name.decode() for name in members)
        found = [await self._look(name) for name in names]
        return [info for info in found if info]

    async def named(self, names: Iterable[str]) -> dict[str, ModelInfo]:
        """Return those of the models that there are, by their names."""
        found = {}
        for name in dict.fromkeys(names):
            with suppress(NotFound):
                found[name] = await self.model(name)
        return found

    async def model(self, name: str) -> ModelInfo:
        """Return what is known of the model. Raises NotFound for a model that no worker has ever served here."""
        info = await self._look(name)
        if info is None:
            raise NotFound(f"The model '{name}' does not exist here.", code="model_not_found", param="model")
        return info

    async def _look(self, name: str) -> ModelInfo | None:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(keys.model(name))
                pipe.llen(keys.queue(name))
                pipe.smembers(keys.workers_of(name))
                pipe.exists(keys.paused(name))
                fields, waiting, workers, paused = await pipe.execute()
            if not fields:
                await self._redis.srem(keys.MODELS, name)
                return None
            alive = await self._redis.exists(*workers) if workers else 0
        return ModelInfo(
            name=name,
            engine=fields[b"engine"].decode(),
            context_length=int(fields[b"context_length"]),
            created_s=int(fields[b"created_s"]),
            parent=fields.get(b"parent", b"").decode(),
            capabilities=tuple(fields.get(b"capabilities", b"").decode().split()),
            slots=int(fields.get(b"slots", 1)),
            prompt_chars_max=int(fields.get(b"prompt_chars_max", 0)),
            dtype=fields.get(b"dtype", b"").decode(),
            resume=fields.get(b"resume", b"exact").decode(),
            temperature=float(fields.get(b"temperature", 1)),
            top_p=float(fields.get(b"top_p", 1)),
            workers=alive,
            waiting=waiting,
            paused=bool(paused),
        )


def _fields(info: ModelInfo) -> dict[Any, Any]:
    return {
        "engine": info.engine,
        "context_length": info.context_length,
        "parent": info.parent,
        "capabilities": " ".join(info.capabilities),
        "slots": info.slots,
        "prompt_chars_max": info.prompt_chars_max,
        "dtype": info.dtype,
        "resume": info.resume,
        "temperature": info.temperature,
        "top_p": info.top_p,
    }
