"""Measures the useful throughput of 1 to 64 workers behind one Redis and one API process, and the CPU that each takes.

The workers are real processes with the scripted engine at a GPU's pace: a step takes its time and costs no CPU. A token
is useful once a client has read it.
"""

import asyncio
import itertools
import os
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import stream
from bench.pipeline import cpu_s
from bench.stack import Stack

READY_S = 600.0  # 32 more processes start at nice 5
WARM_S, WINDOW_S = 10.0, 15.0
QUEUED = 1.25  # streams for each place in a batch, so that some always wait
ANSWER_STEPS = (60, 120)


@dataclass(frozen=True, slots=True)
class Result:
    """The tokens per second that clients read, and the cores that each part used."""

    step_ms: float
    workers: int
    tokens_s: float
    api: float
    redis: float
    engines: float
    clients: float
    refused: int = 0

    @property
    def busiest(self) -> str:
        """Name the part that is at its limit: a process of one core, or the machine."""
        if max(self.api, self.redis, self.clients) > 0.9:
            return max(("API", self.api), ("Redis", self.redis), ("client", self.clients), key=lambda each: each[1])[0]
        total = self.api + self.redis + self.engines + self.clients
        return "the machine" if total > 0.9 * (os.cpu_count() or 1) else ""


class Site:
    """A stack to which workers are added as cells need them."""

    def __init__(self, folder: Path, *, step_ms: float, slots: int) -> None:
        self.step_ms, self.slots = step_ms, slots
        pace = {"PENSTOCK_SCRIPTED_STEP_MS": str(step_ms), "PENSTOCK_SEQUENCES_MAX": str(slots)}
        common = {"OMP_NUM_THREADS": "1", "PENSTOCK_SCRIPTED_TOKENS": "1000000", "PENSTOCK_QUEUE_JOBS_MAX": "100000"}
        self.stack = Stack(folder, **pace, **common)
        self.workers: list[subprocess.Popen[bytes]] = []

    def staff(self, count: int) -> None:
        while len(self.workers) < count:
            self.workers.append(self.stack.spawn("worker", "-m", "scripted"))
            # In a fleet, workers have machines of their own; here they must not starve the one API process.
            os.setpriority(os.PRIO_PROCESS, self.workers[-1].pid, 5)
        self.stack.staffed(count, seconds=READY_S)

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.stack.stop()

    def cpu(self) -> dict[str, float]:
        """Read the CPU seconds used so far."""
        times = os.times()
        return {
            "api": cpu_s(self.stack.api.pid),
            "redis": cpu_s(self.stack.redis.pid),
            "engines": sum(cpu_s(worker.pid) for worker in self.workers),
            "clients": times.user + times.system,
        }


async def measure(site: Site, seed: int) -> Result:
    """Measure with all the workers that run."""
    count, heard, refused = len(site.workers), 0, list[str]()

    def hear(pieces: int) -> None:
        nonlocal heard
        heard += pieces

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        await asyncio.sleep(rng.random() * WARM_S * 0.8)  # not all at once
        for turn in itertools.count():
            content = f"question {number} {turn}"
            body = {"model": "scripted", "messages": [{"role": "user", "content": content}], "temperature": 0}
            try:
                await stream(f"{site.stack.base}/v1", body | {"max_tokens": rng.randint(*ANSWER_STEPS)}, heard=hear)
            except AssertionError as error:
                refused.append(str(error))
                print("refused:", error, flush=True)
                await asyncio.sleep(1)

    clients = [asyncio.create_task(client(number)) for number in range(int(count * site.slots * QUEUED))]
    await asyncio.sleep(WARM_S)
    before, began, cpu = heard, time.perf_counter(), site.cpu()
    await asyncio.sleep(WINDOW_S)
    took, read = time.perf_counter() - began, heard - before
    used = {part: (seconds - cpu[part]) / took for part, seconds in site.cpu().items()}
    for each in clients:
        each.cancel()
    failures = [each for each in await asyncio.gather(*clients, return_exceptions=True) if isinstance(each, Exception)]
    if failures:
        raise failures[0]
    return Result(site.step_ms, count, read / took, refused=len(refused), **used)


def rounds_of(folder: Path, *, step_ms: float, slots: int, counts: Sequence[int], rounds: int) -> list[Result]:
    found = []
    for number in range(rounds):
        site = Site(folder / f"{step_ms}-{number}", step_ms=step_ms, slots=slots)
        try:
            for count in counts:
                site.staff(count)
                found.append(asyncio.run(measure(site, number)))
                print(found[-1], found[-1].busiest, flush=True)
        finally:
            site.stop()
    return found


def table(found: list[Result]) -> str:
    """Format the table. `of linear` is the share of one worker's throughput times the number of workers."""
    lines = [
        "| step | workers | tokens/s | of linear | API, cores | Redis, cores | workers, cores | clients | full |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step_ms in dict.fromkeys(each.step_ms for each in found):
        cells = [each for each in found if each.step_ms == step_ms]
        alone = statistics.median(each.tokens_s for each in cells if each.workers == 1)
        for count in sorted({each.workers for each in cells}):
            cell = [each for each in cells if each.workers == count]
            rates = [each.tokens_s for each in cell]
            middle = statistics.median(rates)
            cores = [statistics.median(getattr(e, p) for e in cell) for p in ("api", "redis", "engines", "clients")]
            shown = " | ".join(f"{each:.2f}" for each in cores)
            limit = ", ".join(sorted({each.busiest for each in cell} - {""}))
            spread = f"{middle:.0f} [{min(rates):.0f}-{max(rates):.0f}]"
            lines.append(f"| {step_ms:g} ms | {count} | {spread} | {middle / alone / count:.3f} | {shown} | {limit} |")
    return "\n".join(lines)
