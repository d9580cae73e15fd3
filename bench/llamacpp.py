"""Compares output tokens per second over HTTP with llama.cpp's own server, both with the same GGUF file, threads and
type of cache. `python -m bench.llamacpp --server PATH/TO/llama-server`

The two take turns; the one that does not answer is stopped by a signal. The CPU time of each is measured, too: it says
something even on a machine that others use meanwhile, if there is one thread (more than one wait for each other by
turning). bench/README.md says how to build the server from the source that the binding was built from.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import psutil

from bench.models import SIZES, write
from bench.serving import Measured, Server, measure, prompts, table
from bench.stack import Stack, answers, until
from shared.process.sockets import free_port
from tools.gguf_model import TYPES, convert

CONTEXT = 1024  # tokens of one stream, prompt and answer
SLOTS = 16


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, and the processes that compute for it."""

    server: Server
    processes: Sequence["subprocess.Popen[bytes]"]

    def resume(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """The CPU time of its processes so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return float(sum(each.user + each.system for each in times))

    def halt(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)


@contextlib.contextmanager
def ours(file: Path, folder: Path, threads: int) -> Iterator[Contender]:
    """Redis, an API process and a worker, with as much context as the other server has."""
    folder.mkdir()
    limits = {"PENSTOCK_SEQUENCES_MAX": str(SLOTS), "PENSTOCK_CONTEXT_LENGTH": str(CONTEXT)}
    stack = Stack(folder, **limits)
    worker = stack.worker(f"bench={file}", "--engine", "llamacpp", "--engine-option", f"threads={threads}")
    try:
        yield Contender(Server("penstock", f"{stack.base}/v1", "bench"), [worker, stack.api])
    finally:
        for process in (worker, stack.api):
            process.send_signal(signal.SIGCONT)
        worker.terminate()
        worker.wait()
        stack.stop()


@contextlib.contextmanager
def theirs(binary: Path, file: Path, folder: Path, threads: int) -> Iterator[Contender]:
    port = free_port()
    sizes = ["--ctx-size", str(SLOTS * CONTEXT), "--parallel", str(SLOTS), "--threads", str(threads)]
    with (folder / "llama-server.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "--model", file, "--port", str(port), "--alias", "bench", *sizes], stdout=log, stderr=log
        )
        try:
            if not until(lambda: answers(f"http://127.0.0.1:{port}/health")):
                raise TimeoutError((folder / "llama-server.log").read_text()[-2000:])
            yield Contender(Server("llama-server", f"http://127.0.0.1:{port}/v1", "bench"), [process])
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()


def compare(
    contenders: Sequence[Contender], cells: Sequence[int], rounds: int, tokens: int
) -> list[tuple[Measured, float]]:
    """Let them take turns, in another order each round. Returns each round with its CPU time for each token, in ms."""
    seeds = itertools.count()
    results: list[tuple[Measured, float]] = []
    for number in range(-1, rounds):  # the first is a warm-up
        for streams in cells:
            order = [*contenders[number % 2 :], *contenders[: number % 2]]
            for contender in order:
                contender.resume()
                texts = prompts(next(seeds), 48)  # never one that a prefix cache knows
                requests = streams * (2 if streams == 1 else 1)
                before = contender.cpu_s()
                done = asyncio.run(measure(contender.server, streams, requests, tokens, texts, number))
                cpu_ms = (contender.cpu_s() - before) * 1000 / (requests * tokens)
                contender.halt()
                results.extend([(done, cpu_ms)] if number >= 0 else [])
                said = f"{done.tokens_s:.1f} tokens/s, {cpu_ms:.2f} CPU ms a token"
                print(f"round {number}: {streams} {done.server} {said}", flush=True)
    return results


def cpu_table(results: Sequence[tuple[Measured, float]], names: Sequence[str]) -> str:
    """Medians of the CPU time for each token; the ratio is above 1 where the first one takes less."""
    lines = [f"| streams | {names[0]}, CPU ms a token | {names[1]} | ratio |", "|---|---|---|---|"]
    for streams in dict.fromkeys(done.streams for done, _ in results):
        mine, other = (
            statistics.median(ms for done, ms in results if (done.server, done.streams) == (name, streams))
            for name in names
        )
        lines.append(f"| {streams} | {mine:.2f} | {other:.2f} | {other / mine:.2f} |")
    return "\n".join(lines)


@click.command()
@click.option("--server", "binary", type=click.Path(exists=True, path_type=Path), required=True, help="llama-server.")
@click.option("--size", type=click.Choice(list(SIZES)), default="250m", show_default=True)
@click.option("--type", "types", multiple=True, type=click.Choice(sorted(TYPES)), default=("f32", "q8_0"))
@click.option("--streams", "cells", multiple=True, type=int, default=(1, SLOTS), show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Length of each answer, in tokens.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Threads of each server.")
@click.option("--out", type=click.Path(path_type=Path), help="Write every round to this file, as JSON.")
def main(
    binary: Path,
    size: str,
    types: Sequence[str],
    cells: Sequence[int],
    tokens: int,
    rounds: int,
    threads: int,
    out: Path | None,
) -> None:
    """Measure both servers and print a table for each type of weights."""
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(size, folder / "model")
        for type_ in types:
            file = folder / f"{size}-{type_}.gguf"
            convert(folder / "model", file, type_)
            with ours(file, folder / type_, threads) as one, theirs(binary, file, folder, threads) as other:
                done = compare([one, other], cells, rounds, tokens)
            measured = [each for each, _ in done]
            print(f"\n{size}, {type_}, {tokens} tokens an answer, {threads} threads\n\n{table(measured, 'penstock')}\n")
            print(cpu_table(done, ["penstock", "llama-server"]), flush=True)
            rows += [replace(each, server=f"{each.server} {type_}") for each in measured]
    if out:
        out.write_text(json.dumps([asdict(each) for each in rows], indent=1))


if __name__ == "__main__":
    main()
