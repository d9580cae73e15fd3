"""API keys that clients send: created, looked up, changed and revoked. Only salted digests are stored."""

import hashlib
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.job import Priority
from shared.redis import keys
from shared.redis.client import translated

PREFIX = "sk-penstock-"  # begins every key that Penstock generates
ID_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A limit of 0 is no limit; empty `models` allow all. `priority` is the class of the key's jobs unless they ask for
    a lower one. `weight` is the key's share of a busy fleet beside other keys. `expires_s` is 0 for never."""

    id: str
    name: str
    created_s: int
    expires_s: int = 0
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_jobs: int = 0
    tokens_per_month: int = 0
    weight: float = 1.0
    priority: Priority = Priority.STANDARD

    def expired(self, now_s: float) -> bool:
        return 0 < self.expires_s <= now_s


class ApiKeyStore:
    def __init__(
        self, client: Redis, *, counting: Sequence[Redis] = (), clock: Callable[[], float] = time.time
    ) -> None:
        """Keys are in `client`; `counting` lists each Redis that has jobs and counts their usage, if not only that."""
        self._redis = client
        self._counting = counting or [client]
        self._clock = clock

    async def create(self, name: str, *, secret: str = "", **limits: Any) -> tuple[ApiKey, str]:
        """Return the new key and its secret, which is shown only this once. `secret` takes over a secret that clients
        have already. Raises InvalidRequest if another key has that secret."""
        secret = secret or PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(id=await self._id(secret), name=name, created_s=int(self._clock()), **limits)
        if await self._fields(key.id):
            raise InvalidRequest(f"The key {key.id} has this secret already.", param="secret")
        salt = secrets.token_bytes(16)
        about = {"salt": salt.hex(), "digest": _digest(salt, secret).hex()}
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.api_key(key.id), mapping=_to_fields(key) | about)
                pipe.sadd(keys.API_KEYS, key.id)
                await pipe.execute()
        return key, secret

    async def authenticate(self, secret: str) -> ApiKey | None:
        """Return the key of this secret; None, in the same time, for an unknown, revoked or expired one."""
        fields_found = await self._fields(await self._id(secret))
        salt = bytes.fromhex(fields_found.get("salt", "00"))
        known = bytes.fromhex(fields_found.get("digest", "00" * 32))
        if not hmac.compare_digest(_digest(salt, secret), known) or not fields_found:
            return None
        key = _from_fields(fields_found)
        return None if key.expired(self._clock()) else key

    async def all(self) -> list[ApiKey]:
        with translated():
            members: Any = await self._redis.smembers(keys.API_KEYS)
        found = [await self._fields(member.decode()) for member in sorted(members)]
        return sorted((_from_fields(each) for each in found if each), key=lambda key: (key.created_s, key.id))

    async def get(self, key_id: str) -> ApiKey:
        """Return the key. Raises NotFound."""
        found = await self._fields(key_id)
        if not found:
            raise NotFound(f"There is no key {key_id}.")
        return _from_fields(found)

    async def change(self, key_id: str, **limits: Any) -> ApiKey:
        """Change the given limits of the key. Raises NotFound."""
        key = replace(await self.get(key_id), **limits)
        with translated():
            await self._redis.hset(keys.api_key(key_id), mapping=_to_fields(key))
        return key

    async def revoke(self, key_id: str) -> None:
        """Make the key unknown from now on. Jobs that it has enqueued run on. Raises NotFound."""
        await self.get(key_id)
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(keys.api_key(key_id))
                pipe.srem(keys.API_KEYS, key_id)
                await pipe.execute()

    async def used(self, key_id: str) -> int:
        """Return how many tokens the key has used this month."""
        with translated():
            return sum([int(await client.get(keys.usage(key_id, self.month())) or 0) for client in self._counting])

    async def costs(self, key_id: str) -> dict[str, int]:
        """Return by model what the key's answers cost this month, in millionths of the prices' currency. Models without
        a price are left out."""
        found: Counter[str] = Counter()
        with translated():
            for client in self._counting:
                of_models: Any = await client.hgetall(keys.costs(key_id, self.month()))
                found.update({model.decode(): int(micros) for model, micros in of_models.items()})
        return dict(sorted(found.items()))

    def month(self) -> str:
        return time.strftime("%Y-%m", time.gmtime(self._clock()))

    async def _id(self, secret: str) -> str:
        """Derive the key's id from its secret and the deployment's salt, so that a digest is of no use elsewhere. The
        salt is read each time: a process that remembered it would disagree with others once Redis was emptied."""
        with translated():
            salt: Any = await self._redis.get(keys.API_KEY_SALT)
            if salt is None:
                await self._redis.set(keys.API_KEY_SALT, secrets.token_hex(16), nx=True)
                salt = await self._redis.get(keys.API_KEY_SALT)
        return "key-" + _digest(salt, secret).hex()[:ID_LENGTH]

    async def _fields(self, key_id: str) -> dict[str, str]:
        with translated():
            found: Any = await self._redis.hgetall(keys.api_key(key_id))
        return {name.decode(): value.decode() for name, value in found.items()}


def _digest(salt: bytes, secret: str) -> bytes:
    return hmac.digest(salt, secret.encode(), hashlib.sha256)


def _to_fields(key: ApiKey) -> dict[Any, Any]:
    found = {field.name: getattr(key, field.name) for field in fields(key)}
    return found | {"models": " ".join(key.models), "priority": str(key.priority)}


def _from_fields(found: dict[str, str]) -> ApiKey:
    numbers = (
        "created_s",
        "expires_s",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_jobs",
        "tokens_per_month",
    )
    return ApiKey(
        id=found["id"],
        name=found["name"],
        models=tuple(found["models"].split()),
        weight=float(found["weight"]),
        priority=Priority(found["priority"]),
        **{name: int(found[name]) for name in numbers},
    )
