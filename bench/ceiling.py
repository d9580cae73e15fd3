"""Measures the CPU time that worker, API and Redis spend on a token, and so how many tokens a second one core of each
can pass on. `python -m bench.ceiling` prints the table of bench/README.md.

The scripted engine costs next to nothing; what it does cost, with the scheduler, is measured in this process and shown
beside. CPU time counts user and system time of all threads and depends little on what else the machine does, clock
time does. With `--against TREE` the processes of another working tree take turns with those of this one. With
`--upstream` the tokens come from a server that only streams, one every `step_ms` to each stream.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from bench.client import stream
from bench.stack import Stack
from shared.process.sockets import free_port
from workers.engines.scripted import VOCABULARY, ScriptedEngine
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import SamplingParams, Sequence

ROOT = Path(__file__).parents[1]
MESSAGES = [{"role": "user", "content": "measure this"}]
PARTS = ("worker", "API", "Redis")


@dataclass(frozen=True, slots=True)
class Cell:
    """So many streams at a time, each with answers of `tokens` tokens; a step takes `step_ms`."""

    streams: int
    step_ms: float
    tokens: int


CELLS = (Cell(32, 20, 64), Cell(32, 20, 512), Cell(64, 20, 512), Cell(64, 0, 1024), Cell(256, 0, 256))


@dataclass(frozen=True, slots=True)
class Site:
    """A stack of one tree with one worker."""

    name: str
    base: str
    pids: tuple[int, int, int]

    def cpu_s(self) -> list[float]:
        return [time.clock_gettime(_cpu_clock(pid)) for pid in self.pids]


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds of CPU time a token of each part, and tokens a second by the clock."""

    cpu_us: tuple[float, ...]
    tokens_s: float


def _cpu_clock(pid: int) -> int:
    """The id of the clock that counts the CPU time of a process: what clock_getcpuclockid() of Linux answers."""
    return (~pid << 3) | 2


@contextmanager
def _engine(cell: Cell, *, upstream: bool) -> Iterator[list[str]]:
    """The worker's arguments, while what they name runs."""
    if not upstream:
        yield ["-m", "scripted"]
        return
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "bench.scale.upstream", str(port), str(cell.step_ms)])
    try:
        yield ["scripted", "--upstream", f"http://127.0.0.1:{port}/v1"]
    finally:
        server.kill()
        server.wait()


@contextmanager
def running(name: str, tree: Path, cell: Cell, *, upstream: bool) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder, _engine(cell, upstream=upstream) as arguments:
        # A safe path has no working directory in it, which else would come before the tree.
        stack = Stack(Path(folder), PYTHONPATH=str(tree), PYTHONSAFEPATH="1", PENSTOCK_FILES=f"{folder}/files")
        pace = {"PENSTOCK_SCRIPTED_STEP_MS": str(cell.step_ms), "PENSTOCK_SEQUENCES_MAX": str(cell.streams)}
        try:
            worker = stack.worker(*arguments, PENSTOCK_SCRIPTED_TOKENS="1000000", **pace)
            yield Site(name, stack.base, (worker.pid, stack.api.pid, stack.redis.pid))
            worker.terminate()
            worker.wait()
        finally:
            stack.stop()


async def load(site: Site, cell: Cell, *, requests: int, tokens: int) -> int:
    """Have each stream ask so many times; return the number of tokens that came."""
    body = {"model": "scripted", "messages": MESSAGES, "max_tokens": tokens}

    async def client() -> int:
        return sum([(await stream(f"{site.base}/v1", body)).pieces for _ in range(requests)])

    return sum(await asyncio.gather(*[client() for _ in range(cell.streams)]))


def measure(site: Site, cell: Cell, tokens_min: int) -> Result:
    requests = max(round(tokens_min / (cell.streams * cell.tokens)), 1)
    before, began = site.cpu_s(), time.perf_counter()
    tokens = asyncio.run(load(site, cell, requests=requests, tokens=cell.tokens))
    took, after = time.perf_counter() - began, site.cpu_s()
    assert tokens == requests * cell.streams * cell.tokens, f"{tokens} tokens came"
    return Result(tuple((b - a) / tokens * 1e6 for a, b in zip(before, after, strict=True)), tokens / took)


def engine_us(cell: Cell, steps: int = 200) -> float:
    """CPU time of the engine and the scheduler a token, without a run that reads it."""
    limits = EngineLimits(
        sequences_max=cell.streams, batch_tokens_max=100_000, context_length=1_000_000, vocabulary=VOCABULARY
    )
    engine, scheduler = ScriptedEngine(limits=limits, step_ms=0, tokens=1_000_000), Scheduler(limits)
    prompt = engine.tokenizer.chat({"messages": MESSAGES}).ids
    for index in range(cell.streams):
        sampling = SamplingParams(seed=index, temperature=1, top_p=1, top_k=0)
        scheduler.add(Sequence(job_id=str(index), choice=0, prompt=prompt, sampling=sampling))
    began = time.thread_time()
    for _ in range(steps):
        batch = scheduler.next_batch()
        scheduler.apply(batch, engine.step(batch))
    return (time.thread_time() - began) / (steps * cell.streams) * 1e6


def table(results: dict[tuple[Cell, str], list[Result]], *, upstream: bool) -> str:
    lines = [
        "| streams | step | answer | tree | worker, µs/token | API | Redis | together | engine alone "
        "| tokens/s a worker's core | tokens/s by the clock |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (cell, name), rounds in results.items():
        parts = [[each.cpu_us[index] for each in rounds] for index in range(len(PARTS))]
        spent = [_spread(each) for each in [*parts, [sum(each.cpu_us) for each in rounds]]]
        core, clock = 1e6 / statistics.median(parts[0]), statistics.median(each.tokens_s for each in rounds)
        pace = f"{cell.step_ms:g} ms" if cell.step_ms else "none"
        cells = [str(cell.streams), pace, str(cell.tokens), name, *spent, "-" if upstream else f"{engine_us(cell):.1f}"]
        lines.append(f"| {' | '.join(cells)} | {core:.0f} | {clock:.0f} |")
    return "\n".join(lines)


def _spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--cell", "cells", multiple=True, help="STREAMS,STEP_MS,TOKENS instead of the usual cells.")
@click.option("--tokens", "tokens_min", default=30_000, show_default=True, help="About so many tokens are one round.")
@click.option("--upstream", is_flag=True, help="Have a server compute instead of the scripted engine.")
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="The root of another working tree.")
def main(rounds: int, cells: tuple[str, ...], tokens_min: int, upstream: bool, against: Path | None) -> None:
    """Measure and print the table."""
    trees = {"this": ROOT, **({"other": against.resolve()} if against else {})}
    wanted = [Cell(int(a), float(b), int(c)) for a, b, c in (each.split(",") for each in cells)] or CELLS
    results: dict[tuple[Cell, str], list[Result]] = {}
    for cell in wanted:
        with ExitStack() as opened:
            sites = [opened.enter_context(running(name, tree, cell, upstream=upstream)) for name, tree in trees.items()]
            for site in sites:
                asyncio.run(load(site, cell, requests=1, tokens=8))  # a warm-up
            for number in range(rounds):
                for site in sites if number % 2 else sites[::-1]:
                    found = measure(site, cell, tokens_min)
                    results.setdefault((cell, site.name), []).append(found)
                    print(json.dumps([site.name, *found.cpu_us, found.tokens_s]), file=sys.stderr)
    print(table(results, upstream=upstream))


if __name__ == "__main__":
    main()
