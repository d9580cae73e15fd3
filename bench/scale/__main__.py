"""`python -m bench.scale queue | workers | relay | plan` measures the figures of docs/scale.md."""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench.scale import plan as planning
from bench.scale import queue as waiting
from bench.scale import relay as between
from bench.scale import workers as many
from cli.embedded_redis import EmbeddedRedis
from shared.process.sockets import free_port
from shared.redis.client import connect

IDLE = (1, 100, 1000)
RESULTS = Path(__file__).parents[1] / "results"


@click.group()
def main() -> None:
    """Measure, print tables and write bench/results/scale-*.json."""


def keep(name: str, found: Any) -> None:
    (RESULTS / f"scale-{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@main.command()
@click.option("--depth", "depths", multiple=True, type=int, default=(0, 10_000, 100_000, 1_000_000), show_default=True)
@click.option("--rounds", default=5, show_default=True)
def queue(depths: Sequence[int], rounds: int) -> None:
    """Measure the queue with many queued jobs, and the memory of jobs and tokens."""

    async def measured(url: str) -> None:
        client = connect(url)
        await client.config_set("appendonly", "no")  # the disk must not slow the measured calls
        await client.config_set("maxmemory", 0)
        taken = await waiting.memory(client)
        await client.flushall()
        costs = await waiting.costs(client, list(depths), rounds)
        print(waiting.table(costs))
        herd = {idle: [await waiting.woken(url, idle) for _ in range(3)] for idle in IDLE}
        print(
            "us of Redis a job, by idle workers:", {idle: [round(each) for each in took] for idle, took in herd.items()}
        )
        print({name: round(size) for name, size in taken.items()}, "bytes")
        keep("queue", {"costs": [asdict(each) for each in costs], "bytes": taken, "woken": herd})
        await client.aclose()

    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis(Path(folder), port=free_port())
        server.start()
        try:
            asyncio.run(measured(server.url))
        finally:
            server.kill()


@main.command()
@click.option("--count", "counts", multiple=True, type=int, default=(1, 2, 4, 8, 16, 32, 64), show_default=True)
@click.option("--step-ms", default=400.0, show_default=True)
@click.option("--slots", default=16, show_default=True, help="Sequences per worker.")
@click.option("--rounds", default=3, show_default=True)
def workers(counts: Sequence[int], step_ms: float, slots: int, rounds: int) -> None:
    """Measure 1 to 64 workers behind one Redis and one API process."""
    with tempfile.TemporaryDirectory() as folder:
        found = many.rounds_of(Path(folder), step_ms=step_ms, slots=slots, counts=counts, rounds=rounds)
    print(many.table(found))
    keep(f"workers-{step_ms:g}", [asdict(each) for each in found])


@main.command()
@click.option("--streams", "cells", multiple=True, type=int, default=(1, 16, 64, 256), show_default=True)
@click.option("--rounds", default=3, show_default=True)
def relay(cells: Sequence[int], rounds: int) -> None:
    """Measure the API as a relay, beside LiteLLM's proxy."""
    found = []
    with tempfile.TemporaryDirectory() as folder, between.relays(Path(folder)) as relays:
        for each in relays:
            asyncio.run(between.measure(each, 4))  # warm-up
        for number in range(rounds):
            for streams in cells:
                for each in relays[number % len(relays) :] + relays[: number % len(relays)]:
                    found.append(asyncio.run(between.measure(each, streams)))
                    print(found[-1], flush=True)
    print(between.table(found))
    keep("relay", [asdict(each) for each in found])


@main.command()
def plan() -> None:
    """Compute what fleets need from the measured figures."""
    costs = planning.measured()
    print(costs)
    fleets = [planning.Fleet(workers, queued=workers * 100, keep_s=3600) for workers in (1, 10, 100, 1000)]
    fleets += [planning.Fleet(workers, queued=workers * 100, keep_s=60) for workers in (100, 1000, 10_000)]
    print(planning.table(fleets, costs))


if __name__ == "__main__":
    main()
