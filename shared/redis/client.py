"""Connections to Redis, and the translation of its errors."""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import hiredis
import redis.exceptions
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff

from shared.domain.errors import QueueUnavailable, SettingsError

CONNECTIONS_MAX = 32  # a burst of requests waits for one of these rather than open a thousand
POOL_WAIT_S = 15  # a saturated pool is not an outage; those fail sooner
Command = tuple[str | int | float, ...]  # the words of one command
# A function for scripts that run their callers' commands after a check of their own.
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
    """Return a client whose calls fail within about a second when Redis is away. Only repeatable scripts write, so a
    re-sent command is safe. `retries=0` is for blocking reads, which must not be sent twice.

    `redis+sentinel://[user:password@]host:26379,host:26379/service/db` asks those Sentinels for the primary, at every
    new connection. `rediss://` and `rediss+sentinel://` do the same over TLS, which `?ssl_ca_certs=FILE` and redis-py's
    other ssl_ options configure. Raises SettingsError for a URL that cannot be parsed.
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
    """Return the URL without its password, for people and logs. A password with characters that a URL does not allow is
    masked, too."""
    place, mark, options = url.partition("?")
    if "@" in options:  # an unencoded ? belongs to the password
        place, mark, options = url, "", ""
    scheme, colons, rest = place.partition("://")
    login, at, address = rest.rpartition("@")
    if at and not rest.startswith("/"):  # a leading / begins the path of a socket
        user, colon, _ = login.partition(":")
        rest = f"{user}{colon}{HIDDEN if colon else ''}@{address}"
    options = PASSWORD_OPTION.sub(lambda found: found[1] + HIDDEN, options)
    return f"{scheme}{colons}{rest}{mark}{options}"


class _QuickConnection(AbstractConnection):
    """A connection that takes less of the CPU for each command, and whose calls end when they are cancelled. redis-py
    sends through `asyncio.wait_for`, which before Python 3.12 loses a cancellation that arrives together with its
    result: the call would go on waiting for the answer, for up to three timeouts, and keep its connection meanwhile."""

    async def connect(self) -> None:
        # Connecting may ask a Sentinel, over a connection of the library's own.
        await self._or_cancelled(super().connect())  # type: ignore[no-untyped-call]

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encode a command in C, as redis-py does for its synchronous clients: a step of 32 jobs has 160 words."""
        name, *words = args
        try:
            return [hiredis.pack_command((*(name.encode() if isinstance(name, str) else name).split(), *words))]
        except TypeError:  # the library takes more types, and names those that nobody takes
            return super().pack_command(*args)

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command. If the socket takes it at once, there is nothing to wait for: the library starts a task with
        a timer for each."""
        health_is_due = check_health and asyncio.get_running_loop().time() > self.next_health_check
        if self._writer is None or health_is_due or not isinstance(command, list):
            await self._or_cancelled(super().send_packed_command(command, check_health))
            return
        self._writer.writelines(command)
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size():
            await self._or_cancelled(super().send_packed_command([], check_health=False))  # waits, or says why not

    async def _or_cancelled(self, call: Awaitable[None]) -> None:
        task = asyncio.current_task()
        assert task
        before = task.cancelling()
        await call
        if task.cancelling() > before:  # the task counts what the library has lost
            await self.disconnect(nowait=True)  # nobody must read the answer to what was sent
            raise asyncio.CancelledError


class _FairPool(ConnectionPool):
    """A bounded pool that serves waiting calls in order. In the library's own blocking pool a call that arrives at the
    right moment takes a free connection, so in a long burst another call waits until its time is up."""

    def __init__(
        self,
        *,
        max_connections: int,
        timeout: float,
        connection_class: type[AbstractConnection] = Connection,
        **options: Any,
    ) -> None:
        quick = type(f"Quick{connection_class.__name__}", (_QuickConnection, connection_class), {})
        super().__init__(connection_class=quick, **options)
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
    """Connections to the current primary. Closing the pool also closes the connections to the Sentinels."""

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
    """Translate every error that keeps Redis from its work into QueueUnavailable."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis does not serve: {error}") from error


def words_of(commands: Iterable[Command]) -> list[str | int | float]:
    """List the commands as `run_commands` reads them from a script's arguments: each follows its number of words."""
    return [word for command in commands for word in (len(command), *command)]


def memory_share(memory: Mapping[str, Any]) -> float:
    """Return the used share of Redis's memory limit, or of its machine's memory, from `INFO memory`."""
    limit = memory.get("maxmemory") or memory.get("total_system_memory") or 0
    return memory["used_memory"] / limit if limit else 0.0
