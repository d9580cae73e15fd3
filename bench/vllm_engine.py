"""Compares Penstock with the engine vllm against plain vLLM of the same version, and kills workers in the middle.
`.venv/vllm/bin/python -m bench.vllm_engine --help`

Both serve the same random model, and take turns: while one is measured, the other's processes are stopped (SIGSTOP).
CPU is that of the processes beside vLLM's core: worker, API and Redis there, vLLM's API server here.
"""

import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil

from bench.models import write
from bench.serving import Measured, Server, measure, prompts, table
from bench.stack import Stack, answers, until
from shared.process.sockets import free_port

PENSTOCK, PLAIN = "Penstock with vLLM", "plain vLLM"
LOAD_S = 600.0
CACHE_BYTES = 2**30
NEXT_TOKEN_S = 5.0
EAGER = "--engine-option=enforce_eager=true"
TEXT = "Tell me of the fox that hums a tune, of the house by the sea, and count to nine."
FORM = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "person", "parameters": FORM}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": FORM}}},
    "tools": {"tools": [TOOL], "tool_choice": "required"},
    "two choices": {"n": 2},
    "penalties": {"presence_penalty": 0.6, "frequency_penalty": 0.3},
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server, all of its processes, and those among them that pass tokens on."""

    server: Server
    processes: list[psutil.Process]
    front: list[psutil.Process]

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self.front]
        return float(sum(each.user + each.system for each in times))

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)


def environment(folder: Path) -> dict[str, str]:
    return {"PENSTOCK_DTYPE": "float32", "PENSTOCK_KV_CACHE_GIB": "1", "PENSTOCK_FILES": str(folder / "files")}


@contextmanager
def penstock(folder: Path, model: Path, *, eager: bool) -> Iterator[tuple[Running, Stack]]:
    stack = Stack(folder, **environment(folder))
    worker = add_worker(stack, model, "vllm", *([EAGER] if eager else []))
    stack.staffed(1, seconds=LOAD_S)
    front = [psutil.Process(pid) for pid in (worker.pid, stack.api.pid, stack.redis.pid)]
    server = Server(PENSTOCK, f"{stack.base}/v1", "bench")
    try:
        yield Running(server, [*front, *front[0].children(recursive=True)], front), stack
    finally:
        worker.terminate()
        worker.wait()
        stack.stop()


def add_worker(stack: Stack, model: Path, engine: str, *options: str) -> "subprocess.Popen[bytes]":
    return stack.spawn("worker", f"--model=bench={model}", f"--engine={engine}", *options)


@contextmanager
def plain(folder: Path, model: Path, *, eager: bool) -> Iterator[Running]:
    port = free_port()
    given = [f"--model={model}", "--served-model-name=bench", f"--port={port}", "--dtype=float32"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *given, "--disable-uvicorn-access-log"]
    command += ["--enforce-eager"] if eager else []
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--kv-cache-memory-bytes={CACHE_BYTES}"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    if not until(lambda: answers(f"{url}/health"), seconds=LOAD_S):
        raise TimeoutError((folder / "vllm.log").read_text()[-2000:])
    front = psutil.Process(process.pid)
    try:
        yield Running(Server(PLAIN, f"{url}/v1", "bench"), [front, *front.children(recursive=True)], [front])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def paused(running: Running) -> Iterator[None]:
    running.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        running.signal(signal.SIGCONT)


@contextmanager
def awake(running: Running) -> Iterator[None]:
    """One answer comes first: processes that were stopped have a lease, a look at the queue and a Redis to catch up."""
    running.signal(signal.SIGCONT)
    try:
        asyncio.run(measure(running.server, 1, 1, 48, prompts(time.time_ns(), 48), 0))
        yield
    finally:
        running.signal(signal.SIGSTOP)


def compare(servers: list[Running], cells: Iterable[int], *, rounds: int, tokens: int) -> tuple[list[Measured], str]:
    """Rounds of all cells, the servers taking turns, and the CPU of the processes beside the core as a table."""
    results: list[Measured] = []
    cpu: dict[tuple[int, str], list[float]] = {}
    for number in range(-1, rounds):  # the first warms up
        for streams in cells:
            for each in servers if number % 2 else servers[::-1]:
                texts = prompts(streams * 1000 + number, 48)
                with awake(each):
                    before = each.cpu_s()
                    found = asyncio.run(measure(each.server, streams, 2 * streams, tokens, texts, number))
                    spent = each.cpu_s() - before
                if number >= 0:
                    results.append(found)
                    cpu.setdefault((streams, each.server.name), []).append(1e6 * spent / (2 * streams * tokens))
    lines = ["| streams | server | CPU beside the core, µs a token |", "|---|---|---|"]
    lines += [f"| {streams} | {name} | {statistics.median(each):.0f} |" for (streams, name), each in cpu.items()]
    return results, "\n".join(lines)


def first_tokens(servers: list[Running], pairs: int) -> str:
    """Time to the first token, one request at a time, in pairs."""
    found: dict[str, list[float]] = {}
    for number in range(-3, pairs):
        for each in servers if number % 2 else servers[::-1]:
            with awake(each):
                one = asyncio.run(measure(each.server, 1, 1, 48, prompts(number + 50_000, 48), number))
            if number >= 0:
                found.setdefault(each.server.name, []).append(one.first_ms)
    added = [mine - theirs for mine, theirs in zip(found[PENSTOCK], found[PLAIN], strict=True)]
    medians = ", ".join(f"{name} {statistics.median(each):.1f} ms" for name, each in found.items())
    return f"TTFT, one at a time, {pairs} pairs: {medians}; added {statistics.median(added):.1f} ms in the median"


class Answer(threading.Thread):
    """Streams one answer and keeps what each choice says."""

    def __init__(self, base: str, kind: str, text: str) -> None:
        super().__init__()
        self._url = f"{base}/v1/chat/completions"
        message = {"role": "user", "content": text}
        usual = {"model": "bench", "messages": [message], "temperature": 0, "max_tokens": 150, "stream": True}
        self._body = usual | KINDS[kind]
        self.said: dict[int, str] = {}
        self.at: list[float] = []

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=LOAD_S) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, chunk: Any) -> None:
        for choice in chunk.get("choices", []):
            delta = choice["delta"]
            calls = "".join(call["function"].get("arguments", "") for call in delta.get("tool_calls") or [])
            self.said[choice["index"]] = self.said.get(choice["index"], "") + (delta.get("content") or "") + calls
        self.at.append(time.monotonic())

    @property
    def pause_s(self) -> float:
        return max((after - before for before, after in zip(self.at, self.at[1:], strict=False)), default=0.0)


def kill(
    stack: Stack, model: Path, kind: str, rng: random.Random, heir: str, expected: dict[int, str], *options: str
) -> str:
    """Kill the worker of vLLM at a random moment of an answer, which `heir` then goes on with. "" if all is as it
    should be, else what is wrong. The heir loads before, frozen until then."""
    worker = add_worker(stack, model, "vllm", *options)
    other = add_worker(stack, model, heir, *(options if heir == "vllm" else ()))
    stack.staffed(2, seconds=LOAD_S)
    family = [psutil.Process(other.pid), *psutil.Process(other.pid).children(recursive=True)]
    for process in family:
        process.suspend()
    until(lambda: stack.serving() == 1)
    answer = Answer(stack.base, kind, TEXT)
    answer.start()
    wait = 1 + rng.randrange(max(sum(map(len, expected.values())) // 3, 1))
    until(lambda: sum(map(len, answer.said.values())) >= wait, seconds=LOAD_S)
    worker.kill()
    for process in family:
        process.resume()
    answer.join(LOAD_S)
    other.terminate()
    other.wait()
    if answer.said != expected:
        return f"{kind}, going on at {heir}: another text"
    return f"{kind}, going on at {heir}: {answer.pause_s:.1f} s" if answer.pause_s > NEXT_TOKEN_S else ""


@click.group()
def main() -> None:
    """Measure the engine vllm."""


@main.command()
@click.option("--size", type=click.Choice(["25m", "250m"]), default="25m", show_default=True)
@click.option("--streams", "cells", multiple=True, type=int, default=(16, 32), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Length of each answer, in tokens.")
@click.option("--pairs", default=40, show_default=True, help="Pairs of requests for the time to the first token.")
@click.option("--eager", is_flag=True, help="Do not compile the model in either: both load sooner.")
def speed(size: str, cells: tuple[int, ...], rounds: int, tokens: int, pairs: int, *, eager: bool) -> None:
    """Compare tokens a second, CPU a token and the time to the first token with plain vLLM's."""
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared(Path(folder), size) as model,
        penstock(Path(folder), model, eager=eager) as (ours, _),
        paused(ours),
        plain(Path(folder), model, eager=eager) as theirs,
        paused(theirs),
    ):
        results, cpu = compare([ours, theirs], cells, rounds=rounds, tokens=tokens)
        print(table(results, PENSTOCK), cpu, sep="\n\n", flush=True)
        print(first_tokens([ours, theirs], pairs))


@main.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--eager", is_flag=True, help="Do not compile the model: each worker loads sooner.")
def kills(kills: int, seed: int, *, eager: bool) -> None:
    """Kill a worker of vLLM at seeded moments; every answer must go on as if nothing had happened."""
    rng, options = random.Random(seed), [EAGER] if eager else []
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder), "25m") as model:
        stack = Stack(Path(folder), **environment(Path(folder)))
        worker = add_worker(stack, model, "vllm", *options)
        stack.staffed(1, seconds=LOAD_S)
        expected = {kind: undisturbed(stack, kind) for kind in KINDS}
        worker.terminate()
        worker.wait()
        wrong = []
        for number in range(kills):
            kind, heir = list(KINDS)[number % len(KINDS)], ("vllm", "native")[number // len(KINDS) % 2]
            wrong.append(kill(stack, model, kind, rng, heir, expected[kind], *options))
            print(f"{number + 1} of {kills}: {wrong[-1] or 'right'}", flush=True)
        stack.stop()
    print(f"{sum(map(bool, wrong))} of {kills} are wrong")


def undisturbed(stack: Stack, kind: str) -> dict[int, str]:
    answer = Answer(stack.base, kind, TEXT)
    answer.start()
    answer.join(LOAD_S)
    return answer.said


@contextmanager
def prepared(folder: Path, size: str) -> Iterator[Path]:
    """A random model of this size."""
    model = folder / f"bench-{size}"
    write(size, model)
    yield model


if __name__ == "__main__":
    main()
