"""Connections to Redis, and its errors in our words."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import redis.exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff

from shared.domain.errors import QueueUnavailable, SettingsError

CONNECTIONS_MAX = 32  # a burst of requests waits for one of these rather than open a thousand
POOL_WAIT_S = 15  # a full house is no broken Redis, whose connections fail sooner
Command = tuple[str | int | float, ...]  # the words of one
# A function for scripts that write what their callers say, after a check of their own.
RUN_COMMANDS = """
local function run_commands(at)
  while at <= #ARGV do
    local words = tonumber(ARGV[at])
    redis.call(unpack(ARGV, at + 1, at + words))
    at = at + words + 1
  end
end
"""
SENTINEL, SENTINEL_TLS = "redis+sentinel", "rediss+sentinel"
SENTINEL_PORT = 26379
HIDDEN = "***"
QUOTED = re.compile(r"'[^']*'")
PASSWORD_OPTION = re.compile(r"(\b\w*password=)[^&]*")


def connect(url: str, *, retries: int = 2) -> Redis:
    """A client whose calls fail within about a second when Redis is away. Only repeatable scripts write, so a
    re-sent command is safe. `retries=0` is for blocking reads, which must not be sent twice.

    `redis+sentinel://[user:password@]host:26379,host:26379/service/db` asks those Sentinels for the primary, at every
    new connection. `rediss://` and `rediss+sentinel://` are the same by TLS; `?ssl_ca_certs=FILE` and redis-py's other
    ssl_ options say how. Raises SettingsError for a URL that cannot be read.
    """
    options: dict[str, Any] = {
        "max_connections": CONNECTIONS_MAX,
        "timeout": POOL_WAIT_S,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), retries),
        "health_check_interval": 15,
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
    }
    try:
        if url.startswith((f"{SENTINEL}://", f"{SENTINEL_TLS}://")):
            return _by_sentinel(url, options)
        return Redis.from_pool(_FairPool.from_url(url, **options))
    except ValueError as error:
        reason = QUOTED.sub("'***'", str(error))  # it may quote a part of the password
        raise SettingsError(f"PENSTOCK_REDIS_URL: {masked(url)} cannot be read: {reason}") from None


def masked(url: str) -> str:
    """The URL for people and logs: without its password. A password with characters that a URL does not allow is not
    shown either."""
    place, mark, options = url.partition("?")
    if "@" in options:  # an unencoded ? belongs to the password
        place, mark, options = url, "", ""
    scheme, colons, rest = place.partition("://")
    login, at, address = rest.rpartition("@")
    if at and not rest.startswith("/"):  # what begins so is the path of a socket
        user, colon, _ = login.partition(":")
        rest = f"{user}{colon}{HIDDEN if colon else ''}@{address}"
    options = PASSWORD_OPTION.sub(lambda found: found[1] + HIDDEN, options)
    return f"{scheme}{colons}{rest}{mark}{options}"


class _FairPool(ConnectionPool):
    """So many connections at most; who came first gets the next one that is free. In the library's own blocking pool
    whoever comes just then takes it, and in a long burst somebody waits until the time is up."""

    def __init__(self, *args: Any, max_connections: int, timeout: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = asyncio.Semaphore(max_connections)
        self._timeout_s = timeout

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise redis.exceptions.ConnectionError("no connection was free in time") from error
        try:
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        except BaseException:
            self._turns.release()
            raise
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        try:
            await super().release(connection)
        finally:
            self._turns.release()


class _PrimaryPool(SentinelConnectionPool, _FairPool):
    """Connections to whatever is the primary now; with them end those to the Sentinels."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def _by_sentinel(url: str, options: dict[str, Any]) -> Redis:
    scheme, _, rest = url.partition("://")
    address, _, place = rest.partition("/")
    place, _, query = place.partition("?")
    login, _, hosts = address.rpartition("@")
    service, _, db = place.partition("/")
    if not service or not hosts:
        raise ValueError(f"{scheme}://host:port,host:port/service/db is expected")
    security = _security(query) if scheme == SENTINEL_TLS else {}
    user, _, password = login.partition(":")
    addresses = []
    for host in hosts.split(","):
        name, _, port = host.partition(":")
        addresses.append((name, int(port or SENTINEL_PORT)))
    to_sentinels = {"socket_connect_timeout": 1, "socket_timeout": 1, **security}
    manager: Any = Sentinel(addresses, sentinel_kwargs=to_sentinels)  # type: ignore[no-untyped-call]
    options |= {"db": int(db or 0), "check_connection": True, **security}
    if login:
        options |= {"username": unquote(user) or None, "password": unquote(password)}
    primary: Redis = manager.master_for(service, connection_pool_class=_PrimaryPool, **options)
    return primary


def _security(query: str) -> dict[str, Any]:
    read = parse_url(f"rediss://?{query}")
    return {"ssl": True} | {name: value for name, value in read.items() if name.startswith("ssl_")}


@contextmanager
def translated() -> Iterator[None]:
    """Raise QueueUnavailable for whatever keeps Redis from doing its part."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis does not serve: {error}") from error


def words_of(commands: Iterable[Command]) -> list[str | int | float]:
    """The commands as `run_commands` reads them from a script's arguments: the number of words comes before each."""
    return [word for command in commands for word in (len(command), *command)]


def memory_share(memory: Mapping[str, Any]) -> float:
    """The part that is used of what Redis may use, or of what its machine has, from `INFO memory`."""
    limit = memory.get("maxmemory") or memory.get("total_system_memory") or 0
    return memory["used_memory"] / limit if limit else 0.0
