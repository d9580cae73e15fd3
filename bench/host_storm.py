"""Counts what a storm of requests to two models of which one fits costs: `python -m bench.host_storm --server PATH
--model FILE`.

Both sides start the same server, llama.cpp's, with the same GGUF file. Penstock's host plans; the other side follows
llama-swap's rule: requests go in their order, and one for another model has the server swapped."""

import asyncio
import json
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import httpx

from bench.host import LOAD_S, Hosted, running
from bench.stack import answers, until
from shared.process.sockets import free_port

FILE = """
[host]
memory = "{memory}"
[defaults]
sequences_max = 4
[models.a]
run = '{run}'
ready = "/health"
[models.b]
run = '{run}'
ready = "/health"
"""
TOKENS = 20
STARTED = '"message":"worker started"'


def storm(count: int) -> list[str]:
    return ["a", "b"] * count


async def _ask(client: httpx.AsyncClient, base: str, model: str, number: int) -> None:
    """Ask once. Raises httpx.HTTPError if there is no answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }
    answer = await client.post(f"{base}/v1/chat/completions", json=body)
    answer.raise_for_status()


def planned(run: str, requests: Sequence[str], apart_s: float) -> dict[str, Any]:
    """The storm at a host, whose models are on disk and loaded by nobody yet."""
    with running(FILE.replace("{run}", run)) as hosted:
        for model in "ab":
            hosted.last_word(model)
        hosted.room_for_one("a", "b")
        loads, began = hosted.log().count(STARTED), time.monotonic()
        waits = asyncio.run(_at_host(hosted, requests, apart_s))
        return _figures(hosted.log().count(STARTED) - loads, time.monotonic() - began, waits)


async def _at_host(hosted: Hosted, requests: Sequence[str], apart_s: float) -> list[float]:
    async with httpx.AsyncClient(timeout=LOAD_S, limits=httpx.Limits(max_connections=None)) as client:

        async def one(number: int, model: str) -> float:
            await asyncio.sleep(number * apart_s)
            began = time.monotonic()
            await _ask(client, hosted.base, model, number)
            return time.monotonic() - began

        return await asyncio.gather(*(one(number, model) for number, model in enumerate(requests)))


class Swapper:
    """One server at a time, swapped on request."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._model = ""
        self._server: subprocess.Popen[bytes] | None = None
        self.base = ""
        self.loads = 0

    def serve(self, model: str) -> None:
        """Have the model's server ready. Raises RuntimeError if it does not start."""
        if model == self._model:
            return
        self.end()
        port = free_port()
        command = shlex.split(self._run.replace("${PORT}", str(port)))
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._model, self.base, self.loads = model, f"http://127.0.0.1:{port}", self.loads + 1
        if not until(lambda: answers(f"{self.base}/health"), seconds=LOAD_S):
            raise RuntimeError("the server does not start")

    def end(self) -> None:
        if self._server:
            self._server.terminate()
            self._server.wait()


def swapped(run: str, requests: Sequence[str], apart_s: float) -> dict[str, Any]:
    """The same storm. Each request is passed on once it was sent, and the one before it is answered."""
    swapper, waits = Swapper(run), []
    began = time.monotonic()

    async def ask(number: int, model: str) -> None:
        async with httpx.AsyncClient(timeout=LOAD_S) as client:
            await _ask(client, swapper.base, model, number)

    try:
        for number, model in enumerate(requests):
            sent = began + number * apart_s
            time.sleep(max(0.0, sent - time.monotonic()))
            swapper.serve(model)
            asyncio.run(ask(number, model))
            waits.append(time.monotonic() - sent)
    finally:
        swapper.end()
    return _figures(swapper.loads, time.monotonic() - began, waits)


def _figures(loads: int, took_s: float, waits: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(waits)
    half, most = ordered[len(ordered) // 2], ordered[-1]
    return {
        "answers": len(waits),
        "loads": loads,
        "took_s": round(took_s, 1),
        "wait_p50_s": round(half, 1),
        "wait_max_s": round(most, 1),
    }


@click.command()
@click.option("--server", type=click.Path(path_type=Path, exists=True), required=True, help="llama.cpp's llama-server.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True, help="A GGUF file.")
@click.option("--count", default=100, show_default=True, help="Requests to each of the two models.")
@click.option("--apart", default=0.0, show_default=True, help="Seconds between two requests.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file, as JSON.")
def main(server: Path, model: Path, count: int, apart: float, out: Path | None) -> None:
    """Count loads and seconds of both."""
    run = f"{server.resolve()} --model {model.resolve()} --port ${{PORT}} --ctx-size 4096 --parallel 4 --threads 2"
    figures = {}
    for name, measure in (("plan", planned), ("swap on request", swapped)):
        figures[name] = measure(run, storm(count), apart)
        click.echo(f"{name}: {json.dumps(figures[name])}")
    if out:
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
