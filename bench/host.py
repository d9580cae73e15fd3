"""Figures of a host: `python -m bench.host --models FOLDER` measures what a request to a model that is not loaded waits
for beyond the load, how long a swap is silent, what an idle host costs, and what its death does.

FOLDER holds bench-250m, as bench/models.py writes it."""

import asyncio
import json
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
import psutil

from bench.stack import Stack, answers, until
from shared.catalog.hosting import Hosting
from shared.domain.hosting import Host, HostedModel, HostedState, Order, OrderVerb, When
from shared.redis.client import connect

FILE = """
[host]
memory = "{memory}"
[models.small]
source = "builtin"
[models.a]
source = "{folder}/bench-250m"
deterministic = true
[models.b]
source = "{folder}/bench-250m"
deterministic = true
"""
ROOMY = "16GiB"
LOAD_S = 300.0
IDLE_S = 30.0
STREAMS = 12
Found = TypeVar("Found")
TOKENS = 200  # longer than a turn, which is twice as long as both loads


class Reader(threading.Thread):
    """Reads one greedy stream, and notes when each piece came."""

    def __init__(self, base: str, model: str, content: str, tokens: int, **more: Any) -> None:
        super().__init__()
        self._url = f"{base}/v1/chat/completions"
        messages = [{"role": "user", "content": content}]
        self._body = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "stream": True,
            "max_tokens": tokens,
            **more,
        }
        self.text = ""
        self.times: list[float] = []
        self.began = 0.0
        self.whole = False

    def run(self) -> None:
        self.began = time.monotonic()
        with httpx.stream("POST", self._url, json=self._body, timeout=LOAD_S) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    self.whole = True
                elif line.startswith("data: "):
                    self._take(json.loads(line[6:]))

    def _take(self, chunk: dict[str, Any]) -> None:
        for choice in chunk.get("choices", ()):
            if text := choice["delta"].get("content"):
                self.text += text
                self.times.append(time.monotonic())

    @property
    def first_s(self) -> float:
        return self.times[0] - self.began


class Hosted:
    """A stack with a host, whose file is `text`, with the memory that models may take in place of `{memory}`."""

    def __init__(self, folder: Path, text: str) -> None:
        self._folder = folder
        self._text = text
        self.file = folder / "models.toml"
        self.write(ROOMY)
        self.stack = Stack(folder)
        self.host = self.start()
        self.base = self.stack.base
        until(lambda: answers(f"{self.base}/health/ready") and bool(self.records()))

    def write(self, memory: str) -> None:
        self.file.write_text(self._text.replace("{memory}", memory))

    def give(self, memory_mib: int) -> None:
        """Let the models take so much memory together, and wait until the host has read it. Raises RuntimeError if it
        does not."""
        self.write(f"{memory_mib}MiB")
        if not until(lambda: self._hosts()[0].memory_bytes == memory_mib * 2**20):
            raise RuntimeError("the host does not read its file")

    def log(self) -> str:
        return (self._folder / "host.log").read_text()

    def start(self) -> Any:
        return self.stack.spawn("host", f"--models={self.file}", f"--data={self._folder}", PENSTOCK_LOG_LEVEL="INFO")

    def records(self) -> dict[str, HostedModel]:
        return {name: found[0] for name, found in self._read(Hosting.all).items()}

    def _hosts(self) -> list[Host]:
        return self._read(Hosting.hosts)

    def _read(self, what: Callable[[Hosting], Awaitable[Found]]) -> Found:
        async def read() -> Found:
            client = connect(self.stack.redis.url)
            try:
                return await what(Hosting(client))
            finally:
                await client.aclose()

        return asyncio.run(read())

    def order(self, verb: OrderVerb, model: str) -> None:
        """Give an order, and wait until it is done. Raises RuntimeError if it is not."""

        async def give() -> str | None:
            client = connect(self.stack.redis.url)
            try:
                hosting, order = Hosting(client), Order(id=uuid.uuid4().hex, verb=verb, model=model, when=When.NOW)
                (host,) = await hosting.hosts()
                await hosting.place(host.id, order)
                deadline = time.monotonic() + LOAD_S
                while not (outcome := await hosting.outcome(order.id)) and time.monotonic() < deadline:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                return outcome
            finally:
                await client.aclose()

        if (outcome := asyncio.run(give())) != "done":
            raise RuntimeError(f"{verb} {model}: {outcome}")

    def room_for_one(self, first: str, second: str) -> None:
        """Give them the memory that holds one of two models that have been loaded before, and not both."""
        less, more = sorted(self.records()[name].memory_bytes for name in (first, second))
        self.give((more + less // 2) // 2**20)

    def last_word(self, model: str) -> Reader:
        """Ask the model once, and wait until it is unloaded, as the request asks for."""
        reader = Reader(self.base, model, "Hello", tokens=10, keep_alive=0)
        reader.start()
        reader.join()
        until(lambda: self.records()[model].state is HostedState.CONFIGURED, seconds=LOAD_S)
        return reader

    def workers(self) -> dict[str, int]:
        paths = (self._folder / "host" / "workers").glob("*.json")
        return {path.stem: json.loads(path.read_text())["pid"] for path in paths}

    def stop(self) -> None:
        self.host.terminate()
        self.host.wait()
        self.stack.stop()


def first_token(hosted: Hosted, rounds: int) -> dict[str, Any]:
    """Ask the built-in model while it is not loaded, and compare the first token with the load alone, as its host
    measures it from the start of the process until it serves."""
    found = []
    for _ in range(rounds + 1):
        reader = hosted.last_word("small")
        found.append((reader.first_s, hosted.records()["small"].load_s))
    over = [first_s - load_s for first_s, load_s in found[1:]]  # the first one compiles
    return {
        "first_token_s": round(statistics.median(first_s for first_s, _ in found[1:]), 3),
        "load_s": round(statistics.median(load_s for _, load_s in found[1:]), 3),
        "over_load_s": round(statistics.median(over), 3),
        "over_load_worst_s": round(max(over), 3),
        "bar_s": 0.5,
    }


def swap(hosted: Hosted, tokens: int) -> dict[str, Any]:
    """Twelve streams of one model of 250 M, cut off by a request to another one that does not fit beside it."""
    questions = [f"Question {n}" for n in range(STREAMS)]
    right = [reader.text for reader in _read(hosted, "a", questions, tokens)]
    hosted.last_word("b")
    hosted.room_for_one("a", "b")
    streams = [Reader(hosted.base, "a", question, tokens) for question in questions]
    for reader in streams:
        reader.start()
    until(lambda: all(len(reader.times) > 5 for reader in streams), seconds=LOAD_S)
    other = Reader(hosted.base, "b", questions[0], tokens=20)
    other.start()
    for reader in (*streams, other):
        reader.join()
    first = other.times[0]
    cut = [reader for reader in streams if reader.times[-1] > first]
    last = max((at for reader in streams for at in reader.times if at < first), default=first)
    load_s = hosted.records()["b"].load_s
    return {
        "streams": STREAMS,
        "cut_off": len(cut),
        "wrong_texts": sum(reader.text != text for reader, text in zip(streams, right, strict=True)),
        "not_whole": sum(not reader.whole for reader in streams),
        "waited_for_b_s": round(other.first_s, 2),
        "dead_s": round(first - last, 2),
        "load_s": round(load_s, 2),
        "dead_beyond_load_s": round(first - last - load_s, 2),
        "bar_s": 1.0,
    }


def killed(hosted: Hosted, tokens: int) -> dict[str, Any]:
    """The host is killed under twelve streams, and started again."""
    hosted.write(ROOMY)
    hosted.order(OrderVerb.LOAD, "a")
    before = hosted.workers()
    streams = [Reader(hosted.base, "a", f"Question {n}", tokens) for n in range(STREAMS)]
    for reader in streams:
        reader.start()
    until(lambda: all(reader.times for reader in streams), seconds=LOAD_S)
    hosted.host.kill()
    hosted.host.wait()
    began = time.monotonic()
    hosted.host = hosted.start()
    adopted = until(lambda: (found := hosted.records().get("a")) is not None and found.state is HostedState.READY)
    took_s = time.monotonic() - began
    for reader in streams:
        reader.join()
    return {
        "adopted": adopted,
        "adopted_after_s": round(took_s, 2),
        "workers_restarted": len(set(hosted.workers().values()) - set(before.values())),
        "not_whole": sum(not reader.whole for reader in streams),
    }


def idle(hosted: Hosted) -> dict[str, Any]:
    """Measure the CPU time of a host that has nothing to do."""
    process = psutil.Process(hosted.host.pid)
    before = process.cpu_times()
    time.sleep(IDLE_S)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    return {"cpu_share": round(used_s / IDLE_S, 4), "bar": 0.01}


def _read(hosted: Hosted, model: str, questions: Sequence[str], tokens: int) -> list[Reader]:
    readers = [Reader(hosted.base, model, question, tokens) for question in questions]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return readers


@contextmanager
def running(text: str) -> Iterator[Hosted]:
    """A host of this file, with Redis and an API, for as long as the body runs."""
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        hosted = Hosted(Path(folder), text)
        try:
            yield hosted
        finally:
            hosted.stop()


@click.command()
@click.option("--models", type=click.Path(path_type=Path), required=True, help="Folder with bench-250m.")
@click.option("--tokens", default=TOKENS, show_default=True, help="Tokens of each stream.")
@click.option("--rounds", default=5, show_default=True, help="Loads of the built-in model.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file, as JSON.")
def main(models: Path, tokens: int, rounds: int, out: Path | None) -> None:
    """Measure a host, with real processes."""
    figures: dict[str, Any] = {}
    with running(FILE.replace("{folder}", str(models.resolve()))) as hosted:
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "first token": lambda: first_token(hosted, rounds),
            "idle": lambda: idle(hosted),
            "swap": lambda: swap(hosted, tokens),
            "killed": lambda: killed(hosted, tokens),
        }
        for name, measure in measures.items():
            figures[name] = measure()
            click.echo(f"{name}: {json.dumps(figures[name])}")
    if out:
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
