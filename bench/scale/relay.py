"""Measures the cost of a relay between clients and an engine: Penstock's API, and LiteLLM's proxy (`make clients`).

LiteLLM relays a server that only streams (`upstream`), Penstock relays its scripted engine at the same pace. Each relay
is one process. The engine's side is not counted; Redis has a column of its own.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.client import Streamed, stream
from bench.pipeline import cpu_s
from bench.stack import Stack, answers, until
from shared.process.sockets import free_port

LITELLM = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "litellm"
KEY = "sk-bench"
STEP_MS, TOKENS = 50.0, 60
READY_S = 120


@dataclass(frozen=True, slots=True)
class Relay:
    """`pids` are the relay's processes; `beside` are those it needs apart from the engine."""

    name: str
    url: str
    model: str
    pids: list[int]
    beside: list[int]


@dataclass(frozen=True, slots=True)
class Result:
    relay: str
    streams: int
    first_ms: float
    events_s: float
    cpu_us: float
    beside_us: float
    failed: int


async def measure(relay: Relay, streams: int) -> Result:
    before, began = _used(relay), time.perf_counter()
    body = {"model": relay.model, "max_tokens": TOKENS, "temperature": 0}

    async def one(number: int) -> Streamed:
        messages = [{"role": "user", "content": f"question {number} {began}"}]
        return await stream(relay.url, body | {"messages": messages}, key=KEY)

    done = await asyncio.gather(*[one(number) for number in range(streams)], return_exceptions=True)
    took, used = time.perf_counter() - began, _used(relay)
    whole = [each for each in done if isinstance(each, Streamed) and each.pieces == TOKENS]
    events = sum(each.pieces for each in done if isinstance(each, Streamed)) or 1
    cpu, beside = ((after - earlier) / events * 1e6 for after, earlier in zip(used, before, strict=True))
    first = statistics.median(each.first_ms for each in whole) if whole else 0.0
    return Result(relay.name, streams, first, events / took, cpu, beside, streams - len(whole))


def _used(relay: Relay) -> tuple[float, float]:
    return sum(map(cpu_s, relay.pids)), sum(map(cpu_s, relay.beside))


@contextmanager
def relays(folder: Path) -> Iterator[list[Relay]]:
    """Start the upstream, LiteLLM in front of it, and Penstock. All run at once and are asked in turn."""
    upstream, proxy = free_port(), free_port()
    mock = subprocess.Popen([sys.executable, "-m", "bench.scale.upstream", str(upstream), str(STEP_MS)])
    params = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": "mock", "litellm_params": params}], "general_settings": {"master_key": KEY}}
    (folder / "litellm.json").write_text(json.dumps(config))
    command = [str(LITELLM), "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(proxy)]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    pace = {"PENSTOCK_SCRIPTED_STEP_MS": str(STEP_MS), "PENSTOCK_SEQUENCES_MAX": "512"}
    with (folder / "litellm.log").open("wb") as log:
        litellm = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    stack = Stack(folder / "stack", PENSTOCK_SCRIPTED_TOKENS="1000000", **pace)
    worker = stack.worker("-m", "scripted")
    try:
        if not until(lambda: answers(f"http://127.0.0.1:{proxy}/health/liveliness"), seconds=READY_S):
            raise TimeoutError(f"LiteLLM does not answer: {(folder / 'litellm.log').read_text()[-2000:]}")
        yield [
            Relay("none", f"http://127.0.0.1:{upstream}/v1", "mock", [mock.pid], []),
            Relay("LiteLLM proxy", f"http://127.0.0.1:{proxy}/v1", "mock", [litellm.pid], []),
            Relay("Penstock", f"{stack.base}/v1", "scripted", [stack.api.pid], [stack.redis.pid]),
        ]
    finally:
        for process in (mock, litellm, worker):
            process.kill()
            process.wait()
        stack.stop()


def table(found: list[Result]) -> str:
    lines = [
        "| streams | relay | added TTFT, ms | events/s | CPU, µs/event | Redis, µs/event | events/s a core | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for streams in dict.fromkeys(each.streams for each in found):
        cell = [each for each in found if each.streams == streams]
        direct = statistics.median(each.first_ms for each in cell if each.relay == "none")
        for name in dict.fromkeys(each.relay for each in cell):
            rounds = [each for each in cell if each.relay == name]
            first = [each.first_ms - direct for each in rounds]
            cpu = [each.cpu_us for each in rounds]
            numbers = [
                f"{statistics.median(first):.0f} [{min(first):.0f}-{max(first):.0f}]",
                f"{statistics.median(each.events_s for each in rounds):.0f}",
                f"{statistics.median(cpu):.0f} [{min(cpu):.0f}-{max(cpu):.0f}]",
                f"{statistics.median(each.beside_us for each in rounds):.0f}",
                f"{1e6 / statistics.median(cpu):.0f}",
                str(sum(each.failed for each in rounds)),
            ]
            lines.append(f"| {streams} | {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)
