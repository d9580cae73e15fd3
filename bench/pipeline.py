"""Measures the cost of the pipeline: the scripted engine behind Redis and one API process, against direct calls of the
same engine. `python -m bench.pipeline` prints the table of bench/README.md.

For each number of streams: the time to the first token that the pipeline adds, the events relayed per second of wall
time, and the API's CPU time per event (user and system, from /proc). Rounds alternate; the table shows their medians.
"""

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import click

from bench.client import stream
from bench.stack import Stack
from workers.engines.scripted import VOCABULARY, ScriptedEngine
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import SamplingParams, Sequence

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MESSAGES = [{"role": "user", "content": "measure this"}]


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of streams at one pace: each stream gets a token every `step_ms`."""

    streams: int
    step_ms: float
    tokens: int


CELLS = (Cell(1, 10, 300), Cell(64, 10, 300), Cell(512, 100, 60), Cell(512, 0, 200))


@dataclass(frozen=True, slots=True)
class Result:
    first_ms: float
    direct_first_ms: float
    events_s: float
    cpu_us: float


def direct_first_ms(cell: Cell) -> float:
    """Measure the time to the first token of the engine alone, with all streams at once."""
    limits = EngineLimits(
        sequences_max=cell.streams, batch_tokens_max=100_000, context_length=1_000_000, vocabulary=VOCABULARY
    )
    engine = ScriptedEngine(limits=limits, step_ms=cell.step_ms, tokens=1_000_000)
    scheduler = Scheduler(limits)
    began = time.perf_counter()
    for index in range(cell.streams):
        prompt = engine.tokenizer.chat({"messages": MESSAGES}).ids
        sampling = SamplingParams(seed=index, temperature=0, top_p=1, top_k=0)
        scheduler.add(Sequence(job_id=str(index), choice=0, prompt=prompt, sampling=sampling))
    batch = scheduler.next_batch()
    scheduler.apply(batch, engine.step(batch))
    return (time.perf_counter() - began) * 1000


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


async def measure(port: int, api_pid: int, cell: Cell) -> Result:
    direct = direct_first_ms(cell)
    before, began = cpu_s(api_pid), time.perf_counter()
    body = {"model": "scripted", "messages": MESSAGES, "max_tokens": cell.tokens}
    url = f"http://127.0.0.1:{port}/v1"
    done = await asyncio.gather(*[stream(url, body) for _ in range(cell.streams)])
    took, used = time.perf_counter() - began, cpu_s(api_pid) - before
    tokens = sum(each.pieces for each in done)
    assert tokens == cell.streams * cell.tokens, f"{tokens} tokens of {cell.streams * cell.tokens}"
    return Result(statistics.median(each.first_ms for each in done), direct, tokens / took, used / tokens * 1e6)


def start_worker(stack: Stack, cell: Cell) -> subprocess.Popen[bytes]:
    """Start a worker at the cell's pace."""
    pace = {"PENSTOCK_SCRIPTED_STEP_MS": str(cell.step_ms), "PENSTOCK_SEQUENCES_MAX": str(cell.streams)}
    return stack.worker("-m", "scripted", PENSTOCK_SCRIPTED_TOKENS="1000000", **pace)


def table(results: dict[Cell, list[Result]]) -> str:
    lines = [
        "| streams | engine step | added TTFT, ms | TTFT engine alone, ms | events/s | API CPU, µs/event |",
        "|---|---|---|---|---|---|",
    ]
    for cell, rounds in results.items():
        added = _spread([r.first_ms - r.direct_first_ms for r in rounds], 1)
        alone = _spread([r.direct_first_ms for r in rounds], 1)
        pace = f"{cell.step_ms:g} ms" if cell.step_ms else "as fast as it can"
        events, cpu = _spread([r.events_s for r in rounds], 0), _spread([r.cpu_us for r in rounds], 1)
        lines.append(f"| {cell.streams} | {pace} | {added} | {alone} | {events} | {cpu} |")
    return "\n".join(lines)


def _spread(values: Seq[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


@click.command()
@click.option("--rounds", default=3, show_default=True)
def main(rounds: int) -> None:
    """Measure and print the table."""
    results: dict[Cell, list[Result]] = {cell: [] for cell in CELLS}
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            for _ in range(rounds):
                for cell in CELLS:
                    worker = start_worker(stack, cell)
                    asyncio.run(measure(stack.port, stack.api.pid, Cell(cell.streams, cell.step_ms, 5)))  # warm-up
                    results[cell].append(asyncio.run(measure(stack.port, stack.api.pid, cell)))
                    worker.terminate()
                    worker.wait()
        finally:
            stack.stop()
    print(table(results))


if __name__ == "__main__":
    main()
