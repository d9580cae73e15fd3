"""Compares output tokens per second over HTTP with other servers of the same model. `python -m bench.serving --help`

Every server answers the same prompts, greedily, to a fixed length. In each round the servers take turns, one at a time
while the others idle. Penstock is one server of the list: start it as its users do. bench/README.md says how to start
the others.
"""

import asyncio
import itertools
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench.client import Streamed, stream

WORDS = "the fox hums a tune count to nine and tell me of a house by the sea where whales sing at night".split()


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one cell."""

    server: str
    streams: int
    round: int
    tokens_s: float
    first_ms: float
    failed: int


def prompts(seed: int, words: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(512)]


async def measure(
    server: Server, streams: int, requests: int, tokens: int, texts: Sequence[str], number: int
) -> Measured:
    """Send `requests` requests, `streams` of them at any time."""
    todo = itertools.islice(texts, requests)
    done: list[Streamed] = []

    async def client() -> None:
        for text in todo:
            body = {
                "model": server.model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": tokens,
                "temperature": 0,
            }
            done.append(await stream(server.url, body))

    began = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(streams)])
    took = time.perf_counter() - began
    whole = [each for each in done if each.whole]
    return Measured(
        server.name,
        streams,
        number,
        tokens_s=len(whole) * tokens / took,
        first_ms=statistics.median(each.first_ms for each in done),
        failed=len(done) - len(whole),
    )


def table(results: Sequence[Measured], base: str) -> str:
    lines = ["| streams | server | output tokens/s | ratio | TTFT, ms | failed |", "|---|---|---|---|---|---|"]
    for streams in dict.fromkeys(each.streams for each in results):
        cell = [each for each in results if each.streams == streams]
        whole = statistics.median(each.tokens_s for each in cell if each.server == base)
        for name in dict.fromkeys(each.server for each in cell):
            rounds = [each for each in cell if each.server == name]
            rate = [each.tokens_s for each in rounds]
            middle = statistics.median(rate)
            first = statistics.median(each.first_ms for each in rounds)
            failed = sum(each.failed for each in rounds)
            spread = f"{middle:.0f} [{min(rate):.0f}-{max(rate):.0f}]"
            lines.append(f"| {streams} | {name} | {spread} | {whole / middle:.1f} | {first:.0f} | {failed} |")
    return "\n".join(lines)


@click.command()
@click.option(
    "--server",
    "servers",
    multiple=True,
    required=True,
    metavar="NAME,URL,MODEL",
    help="Server to measure; the first one is ours. May be repeated.",
)
@click.option("--streams", "cells", multiple=True, type=int, default=(1, 16, 32), show_default=True)
@click.option("--per-stream", default=2, show_default=True, help="Requests for each stream.")
@click.option("--tokens", default=64, show_default=True, help="Length of each answer, in tokens.")
@click.option("--words", default=48, show_default=True, help="Length of each prompt, in words.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write every round to this file, as JSON.")
def main(
    servers: Sequence[str],
    cells: Sequence[int],
    per_stream: int,
    tokens: int,
    words: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Measure the servers and print a table. `ratio` is our tokens/s divided by the server's."""
    known = [Server(*text.split(",", 2)) for text in servers]
    seeds = itertools.count()
    results: list[Measured] = []
    for server in known:
        asyncio.run(measure(server, 4, 4, 8, prompts(-1, words), -1))  # warm-up
    for number in range(rounds):
        for streams in cells:
            for server in known[number % len(known) :] + known[: number % len(known)]:
                texts = prompts(next(seeds), words)  # never one that a prefix cache knows
                done = asyncio.run(measure(server, streams, streams * per_stream, tokens, texts, number))
                results.append(done)
                print(f"round {number}: {streams} {server.name} {done.tokens_s:.0f} tokens/s", flush=True)
    print(f"\n{tokens} tokens an answer, {os.cpu_count()} cores, {platform.processor() or platform.machine()}\n")
    print(table(results, known[0].name))
    if out:
        out.write_text(json.dumps([asdict(each) for each in results], indent=1))


if __name__ == "__main__":
    main()
