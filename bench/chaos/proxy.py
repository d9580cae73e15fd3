"""A proxy between the processes and Redis that can break the network."""

import asyncio
from contextlib import suppress

from shared.process.sockets import free_port

PIECE = 7  # bytes, when frames are split


class Proxy:
    """`delay_s` delays each piece, `split` cuts pieces small, `mute` drops Redis's answers, and `reset` closes all
    connections."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.delay_s = 0.0
        self.split = False
        self.mute = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self.reset()
        if self._server:
            self._server.close()

    def reset(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, behind_writer}
        try:
            await asyncio.gather(
                self._pass(reader, behind_writer, answers=False), self._pass(behind_reader, writer, answers=True)
            )
        except asyncio.CancelledError:
            return  # the campaign is over
        finally:
            self._writers -= {writer, behind_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if answers and self.mute:
                    continue
                size = (
                    PIECE if self.split else len(data)
                )  # one size for all of these bytes, even if `split` changes meanwhile
                for start in range(0, len(data), size):
                    if writer.is_closing():
                        return
                    writer.write(data[start : start + size])
                    if size == PIECE:
                        await asyncio.sleep(0)
                await writer.drain()
        with suppress(OSError):
            writer.close()
