"""Computes the Redis servers, API processes and memory that a fleet needs. This is arithmetic only: each factor is a
figure of bench/results/scale-*.json, and holds as long as the costs in those tables do not grow with the size."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("api", "redis", "engines", "clients")
FULL = 1.7  # cores in use, of two
BUSY = 0.6  # greatest share of a core, so that bursts do not wait
ENDED_JOB_BYTES = 2000  # without payload and log


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of one core per streamed token, all costs of its job included, and bytes in Redis."""

    api_us: float
    redis_us: float
    waiting_bytes: float
    token_bytes: float


@dataclass(frozen=True, slots=True)
class Fleet:
    workers: int
    worker_tokens_s: float = 1500
    answer_tokens: int = 300
    queued: int = 0
    keep_s: int = 3600


def measured() -> Costs:
    """Take the costs of the cell with the most workers, at a GPU's pace, that left some of the machine idle."""
    cells: list[dict[str, Any]] = json.loads((RESULTS / "scale-workers-25.json").read_text())
    idle = [each for each in cells if sum(each[part] for part in PARTS) < FULL]
    most = max(each["workers"] for each in idle)
    cell = [each for each in cells if each["workers"] == most]
    taken = json.loads((RESULTS / "scale-queue.json").read_text())["bytes"]
    return Costs(
        api_us=statistics.median(each["api"] / each["tokens_s"] * 1e6 for each in cell),
        redis_us=statistics.median(each["redis"] / each["tokens_s"] * 1e6 for each in cell),
        waiting_bytes=taken["waiting job"],
        token_bytes=taken["token"],
    )


def needs(fleet: Fleet, costs: Costs) -> dict[str, float]:
    """Compute a fleet's needs. `memory_gib` is the sum over all Redis servers."""
    tokens_s = fleet.workers * fleet.worker_tokens_s
    ended = tokens_s / fleet.answer_tokens * fleet.keep_s
    logs = tokens_s * fleet.keep_s * costs.token_bytes + ended * ENDED_JOB_BYTES
    return {
        "tokens_s": tokens_s,
        "api": math.ceil(tokens_s * costs.api_us / 1e6 / BUSY),
        "redis": math.ceil(tokens_s * costs.redis_us / 1e6 / BUSY),
        "memory_gib": (logs + fleet.queued * costs.waiting_bytes) / 2**30,
    }


def table(fleets: list[Fleet], costs: Costs) -> str:
    lines = [
        "| workers | tokens/s | jobs that wait | ended jobs kept | API processes | Redis | their memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for fleet in fleets:
        need = needs(fleet, costs)
        kept = f"{fleet.keep_s} s"
        lines.append(
            f"| {fleet.workers:,} | {need['tokens_s']:,.0f} | {fleet.queued:,} | {kept} | {need['api']:,} | "
            f"{need['redis']:,} | {need['memory_gib']:,.1f} |"
        )
    return "\n".join(lines)
