"""A server of one's own as the only upstream of its model. If it ends, the worker ends with it, as with an engine that
is lost: its jobs are taken over, and those that kill the server again and again count as poison."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from shared.domain.errors import SettingsError
from workers.engines.command.options import CommandOptions
from workers.engines.command.server import CommandServer
from workers.engines.upstream.errors import UpstreamBroken, UpstreamError
from workers.engines.upstream.transport import Call, Transport
from workers.engines.upstream.upstreams import Upstreams
from workers.protocols import EngineBroken

TICK_S = 0.1
HEALTH_EVERY_S = 5.0
END_S = 0.5  # between a broken connection and the end of the process that breaks it


class CommandUpstreams(Upstreams):
    def __init__(self, server: CommandServer, options: CommandOptions, *, model: str, redis_url: str) -> None:
        super().__init__(options, model=model, redis_url=redis_url)
        self._server = server
        self._timing = options

    async def open(self) -> None:
        """Start the server, and wait until it is ready. Raises SettingsError if it does not get so far."""
        self._server.start()
        try:
            async with asyncio.timeout(self._timing.start_s):
                await self._until_ready()
        except TimeoutError as error:
            what = f"does not answer {self._timing.ready} with 200 within {self._timing.start_s:g} s"
            raise SettingsError(f"ENGINE_OPTION run: the server {what}") from error
        await super().open()
        await self._take_its_only_model()

    async def watch(self) -> None:
        """Ask again and again. Raises EngineBroken when the server has ended, or was not healthy for too long."""
        healthy = asyncio.get_running_loop().time()
        while True:
            now = asyncio.get_running_loop().time()
            if await asyncio.to_thread(self._server.is_ready):
                healthy = now
            if now - healthy > self._timing.health_s:
                raise EngineBroken(f"the server does not answer {self._timing.ready} with 200 any more")
            await self._check_for(min(HEALTH_EVERY_S, self._timing.health_s / 2))

    async def _until_ready(self) -> None:
        while not await asyncio.to_thread(self._server.is_ready):
            if not self._server.is_running:
                raise SettingsError(f"ENGINE_OPTION run: the server {self._server.end}")
            await asyncio.sleep(TICK_S)

    async def _take_its_only_model(self) -> None:
        """Ask for the one model that the server has, whatever it calls it."""
        (upstream,) = self.all
        try:
            listed = [] if self.known else await upstream.models()
        except UpstreamError:  # it may be a server without a list
            return
        if len(listed) == 1:
            upstream.model, self.known = listed[0]["id"], listed[0]

    async def _check_for(self, seconds: float) -> None:
        """Wait for so many seconds. Raises EngineBroken if the server ends within them."""
        until = asyncio.get_running_loop().time() + seconds
        while self._server.is_running:
            if asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(TICK_S)
        raise EngineBroken(f"the server {self._server.end}")

    def _new_transport(self) -> Transport:
        return _WatchedTransport(self._check_for, silence_s=self._options.silence_s)


class _WatchedTransport(Transport):
    """Tells a server that has ended from one that does not answer."""

    def __init__(self, check_for: Callable[[float], Awaitable[None]], *, silence_s: float) -> None:
        super().__init__(silence_s=silence_s)
        self._check_for = check_for

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        try:
            async for data in super().events(call):
                yield data
        except UpstreamBroken:
            await self._check_for(END_S)
            raise

    async def fetch(self, call: Call) -> Any:
        try:
            return await super().fetch(call)
        except UpstreamBroken:
            await self._check_for(END_S)
            raise
