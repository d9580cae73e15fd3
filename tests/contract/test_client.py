"""A pool of connections to Redis that many calls want at once."""

import asyncio
from collections.abc import Iterable

import pytest
from redis.asyncio import Connection, Redis
from redis.exceptions import DataError

from shared.domain.errors import QueueUnavailable
from shared.domain.job import Priority
from shared.process.tasks import end
from shared.redis import client as client_module
from shared.redis.client import CONNECTIONS_MAX, connect, translated
from tests.conftest import ServerOf

TASKS = 4 * CONNECTIONS_MAX
ENDS_WITHIN_S = 5


async def _wait_in_vain(client: Redis) -> None:
    await client.blpop(["nothing"], timeout=30)


@pytest.mark.alone
async def test_who_came_first_gets_the_next_connection(server_of: ServerOf) -> None:
    """The order in which calls end proves nothing, since Redis does not answer in the order of the calls."""
    client = connect(server_of("embedded").url)
    pool = client.connection_pool
    # Open all connections first, since a call that opens one gets it several answers later.
    await asyncio.gather(*[client.ping() for _ in range(TASKS)])
    asked: list[int] = []
    given: list[int] = []

    async def asks(number: int) -> None:
        for _ in range(20):
            asked.append(number)
            connection = await pool.get_connection()
            given.append(number)
            await connection.send_command("PING")
            assert await connection.read_response() == b"PONG"
            await pool.release(connection)

    await asyncio.gather(*map(asks, range(TASKS)))

    assert given == asked
    await client.aclose()


async def test_connections_come_back_from_calls_that_were_cancelled(server_of: ServerOf) -> None:
    client = connect(server_of("embedded").url)
    for _ in range(3):
        waiting = [asyncio.ensure_future(_wait_in_vain(client)) for _ in range(TASKS)]
        await asyncio.wait(waiting, timeout=0.05)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    assert await asyncio.wait_for(asyncio.gather(*[client.ping() for _ in range(TASKS)]), 10) == [True] * TASKS
    await client.aclose()


@pytest.mark.parametrize("steps", range(8))
async def test_a_call_ends_at_whatever_step_it_is_cancelled(
    server_of: ServerOf, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(client_module, "CONNECTIONS_MAX", 1)
    client = connect(server_of("embedded").url)
    await client.ping()  # this opens the connection, so that the steps below are the event loop's and not the network's
    call = asyncio.ensure_future(_wait_in_vain(client))
    next_call = asyncio.ensure_future(client.ping())
    for _ in range(steps):
        await asyncio.sleep(0)

    call.cancel()
    await asyncio.wait([call], timeout=ENDS_WITHIN_S)

    assert call.cancelled()
    assert await next_call
    await client.aclose()


class _Sends:
    """Counts the sends of a connection, and cancels `call` during send number `last`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.last = 0
        self.call: asyncio.Future[None] | None = None
        writelines = asyncio.StreamWriter.writelines

        def counted(writer: asyncio.StreamWriter, data: Iterable[bytes]) -> None:
            writelines(writer, data)
            self.count += 1
            if self.call and self.count == self.last:
                asyncio.get_running_loop().call_soon(self.call.cancel)

        monkeypatch.setattr(asyncio.StreamWriter, "writelines", counted)


async def test_a_call_ends_when_it_is_cancelled_just_as_something_is_sent(
    server_of: ServerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is cancelled during each send: those that open the connection, and the command itself."""
    sends = _Sends(monkeypatch)
    url = server_of("embedded").url
    async with connect(url) as client:
        await client.ping()
    every, cancelled = sends.count, []

    for number in range(1, every + 1):
        sends.count, sends.last = 0, number
        async with connect(url) as client:
            sends.call = asyncio.ensure_future(_wait_in_vain(client))
            await asyncio.wait([sends.call], timeout=ENDS_WITHIN_S)
            cancelled.append(sends.call.cancelled())
            await end([sends.call])

    assert every > 1
    assert cancelled == [True] * every


class _Sink:
    """A writer of a connection without a peer, and its transport, which never gets everything out."""

    @property
    def transport(self) -> "_Sink":
        return self

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 1

    def writelines(self, data: Iterable[bytes]) -> None:
        list(data)

    async def drain(self) -> None:
        return

    def close(self) -> None:
        return


async def test_commands_are_packed_as_the_library_packs_them() -> None:
    client = connect("redis://localhost")
    connection = client.connection_pool.make_connection()
    words = ("CONFIG GET", "é", b"\0\xff", 7, -1.5, 1e-7, Priority.BATCH, bytearray(b"x"), memoryview(b"y"), "")

    packed = connection.pack_command(*words)

    assert b"".join(packed) == b"".join(Connection().pack_command(*words))
    with pytest.raises(DataError):
        connection.pack_command("SET", "key", None)
    await client.aclose()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"])
async def test_a_cancelled_call_ends_whatever_the_connection(scheme: str) -> None:
    client = connect(f"{scheme}://localhost/service/0")
    connection = client.connection_pool.make_connection()
    connection._reader = connection._writer = _Sink()
    call = asyncio.ensure_future(connection.send_command("PING", check_health=False))
    for _ in range(2):
        await asyncio.sleep(0)

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert not connection.is_connected
    await client.aclose()


async def test_a_call_that_gets_no_connection_in_time_is_told(
    server_of: ServerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(client_module, "POOL_WAIT_S", 0.05)
    client = connect(server_of("embedded").url)
    holding = asyncio.ensure_future(_wait_in_vain(client))
    await asyncio.wait([holding], timeout=0.05)

    with pytest.raises(QueueUnavailable, match="no connection was free"), translated():
        await client.ping()
    holding.cancel()
    await asyncio.wait([holding])
    await client.aclose()
