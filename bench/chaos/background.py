"""Faults of batches and webhooks, whose clients do not wait on a connection, and a stack that is started twice."""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from bench.chaos.act import Act
from bench.chaos.batch_requests import BATCH_ENDS_S, ENDED, bearer, create, ended, look_at
from bench.chaos.http import call
from bench.chaos.keyring import limited_key, revoke
from bench.chaos.site import Process
from bench.stack import answers
from shared.process.sockets import free_port

TOLD_WITHIN_S = 6.0  # after a response's end
DRIP_S = 0.5
REFUSES_WITHIN_S = 10.0


class Receiver:
    """A receiver of webhooks. With `drips`, its answer never ends and never pauses for long."""

    def __init__(self, *, drips: bool) -> None:
        self._drips = drips
        self._open: set[asyncio.Task[None]] = set()
        self.heard = 0  # connections
        self.told = asyncio.Queue[str]()  # ids of the responses that ended

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen, and yield the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        self.heard += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(next(line for line in head.split("\r\n") if line.startswith("content-length:")).split(":")[1])
        body = json.loads(await reader.readexactly(length))
        if self._drips:
            writer.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
            while True:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(DRIP_S)
        self.told.put_nowait(body["data"]["id"])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()


async def dripping_receiver(act: Act) -> None:
    """Let one tenant's receiver hold up every delivery to it; another tenant's webhooks must still come in time."""
    site = act.site

    async def respond(tenant: str) -> str:
        body = {"model": site.model, "input": "hello", "background": True, "max_output_tokens": 16}
        _, answer = await call(f"{act.rng.choice(site.bases())}/v1/responses", body=body, headers=bearer(tenant))
        return str(answer["id"])

    for _ in range(act.rounds):
        bad, good = Receiver(drips=True), Receiver(drips=False)
        async with bad.listening() as bad_url, good.listening() as good_url:
            endpoints = [
                ("vandal", await _endpoint(act, "vandal", bad_url)),
                ("told", await _endpoint(act, "told", good_url)),
            ]
            act.strike()
            for _ in range(3):  # one after the other, so that no process takes all of them
                await asyncio.gather(*[respond("vandal") for _ in range(4)])
                await asyncio.sleep(1.2)
            wanted = {await respond("told") for _ in range(3)}
            began = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_WITHIN_S):
                    while wanted:
                        wanted.discard(await good.told.get())
            if not bad.heard:
                act.blame("I4", "the receiver that drips was never called: nothing is proven")
            if wanted:
                act.blame("I11", f"{len(wanted)} of 3 webhooks did not come within {time.monotonic() - began:.0f} s")
            for tenant, endpoint in endpoints:
                url = f"{act.rng.choice(site.bases())}/v1/webhooks/{endpoint}"
                await call(url, method="DELETE", headers=bearer(tenant))
        site.client.delete("penstock:deliveries")  # they would be retried for hours


async def batches(act: Act) -> None:
    """Take away a batch's file, key or model while it runs, and hand it to another process: it must end as failed."""
    for _ in range(act.rounds):
        act.strike()
        await asyncio.gather(_without_file(act), _without_key(act), _without_model(act))


async def _without_file(act: Act) -> None:
    file_id, batch_id = await _batch(act, "batches")
    await _under_way(act, batch_id, "batches")
    (act.site.files / file_id).unlink()
    _hand_over(act, batch_id)
    batch = await ended(act, batch_id, "batches")
    if batch["status"] != "failed":
        act.blame("I4", f"a batch without its file is {batch['status']}")


async def _without_key(act: Act) -> None:
    key_id, secret = await limited_key(act.site)
    _, batch_id = await _batch(act, secret, lines=300)
    await _under_way(act, batch_id, secret)
    await revoke(act.site, key_id)
    batch: dict[str, Any] = {}
    deadline = time.monotonic() + BATCH_ENDS_S
    while batch.get("status") not in ENDED and time.monotonic() < deadline:
        found = await asyncio.to_thread(
            act.site.client.get, f"penstock:batch:{batch_id}"
        )  # the revoked key can no longer read it
        batch = json.loads(str(found))
        await asyncio.sleep(0.2)
    if batch["status"] != "failed":
        act.blame("I4", f"a batch whose key was revoked is {batch['status']}, with {batch['completed']} done")


async def _without_model(act: Act) -> None:
    _, batch_id = await _batch(act, "batches", lines=3, model="gone")
    batch = await ended(act, batch_id, "batches")
    counts = batch["request_counts"]
    if batch["status"] != "failed" and counts["failed"] != counts["total"]:
        act.blame("I4", f"a batch of a model that is gone is {batch['status']} with {counts}")


async def supervisors(act: Act) -> None:
    """Start a second `penstock up` on a first one's data folder: it must refuse, and the first one must still serve."""
    site = act.site
    act.strike()
    up = [
        "up",
        "--model",
        site.model,
        "--workers",
        "0",
        "--data",
        str(site.folder / f"stack-{act.rng.getrandbits(30)}"),
    ]
    base = f"http://127.0.0.1:{(port := free_port())}"
    log = site.folder / "stacks.log"
    first = Process(up, code=site.code, environment={"PENSTOCK_PORT": str(port)}, log=log)
    second = None
    try:
        await site.until(lambda: answers(f"{base}/health/ready"), "the first stack")
        second = Process(up, code=site.code, environment={"PENSTOCK_PORT": str(free_port())}, log=log)
        with suppress(TimeoutError):
            await site.until(lambda: not second.alive, "the second one ends", seconds=REFUSES_WITHIN_S)
        if second.alive or not second.popen.returncode:
            act.blame(
                "I1", f"a second `penstock up` works on the data of the first one, exit {second.popen.returncode}"
            )
        if not first.alive or not await asyncio.to_thread(answers, f"{base}/health/ready"):
            act.blame("I1", "the first `penstock up` no longer serves")
    finally:
        for stack in filter(None, (second, first)):
            stack.send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(stack.popen.wait, 10)
            stack.end()


def _hand_over(act: Act, batch_id: str) -> None:
    """Take the batch's lease away from its process; it lapses in two seconds."""
    act.site.client.set(f"penstock:batch-lease:{batch_id}", "nobody", ex=2)


async def _under_way(act: Act, batch_id: str, tenant: str) -> None:
    """Wait until some lines of the batch are done."""
    deadline = time.monotonic() + BATCH_ENDS_S
    while time.monotonic() < deadline:
        batch = await look_at(act, batch_id, tenant)
        if batch["request_counts"]["completed"]:
            return
        await asyncio.sleep(0.1)
    act.blame("I4", f"a batch has not begun: {batch['status']}")


async def _batch(act: Act, tenant: str, *, lines: int = 200, model: str = "") -> tuple[str, str]:
    """Create a batch of equal lines; return the ids of its file and of itself."""
    asked = {"model": model or act.site.model, "messages": [{"role": "user", "content": "line"}], "max_tokens": 50}
    return await create(act, tenant, [("/v1/chat/completions", asked)] * lines)


async def _endpoint(act: Act, tenant: str, url: str) -> str:
    _, made = await call(f"{act.rng.choice(act.site.bases())}/v1/webhooks", body={"url": url}, headers=bearer(tenant))
    return str(made["id"])
