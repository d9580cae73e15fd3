"""Measures the upstream engine: `python -m bench.upstream relay` relays a server that only streams, beside LiteLLM's
proxy in front of the same server; `python -m bench.upstream quota` sends more jobs at once than a server takes."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
import httpx
from aiohttp import web

from bench.scale.relay import KEY, LITELLM, READY_S, STEP_MS, Relay, measure, table
from bench.stack import Stack, answers, until
from shared.process.sockets import free_port

MODEL = "mock"
QUOTA, JOBS, URGENT = 60, 300, 100
RESULTS = Path(__file__).parent / "results"


@click.group()
def main() -> None:
    """Measure the upstream engine."""


@main.command()
@click.option("--streams", "cells", multiple=True, type=int, default=(1, 64), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--litellm", default=str(LITELLM), show_default=True, help="LiteLLM's command.")
def relay(cells: tuple[int, ...], rounds: int, litellm: str) -> None:
    """Measure events a second a core, and the time added to the first token. Penstock's API process and its worker are
    counted together."""
    found = []
    with tempfile.TemporaryDirectory() as folder, _relays(Path(folder), litellm) as relays:
        for each in relays:
            asyncio.run(measure(each, 4))  # warm-up
        for number in range(rounds):
            for streams in cells:
                for each in relays[number % len(relays) :] + relays[: number % len(relays)]:
                    found.append(asyncio.run(measure(each, streams)))
                    print(found[-1], flush=True)
    print(table(found))
    (RESULTS / "upstream-relay.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


@contextmanager
def _relays(folder: Path, command: str) -> Iterator[list[Relay]]:
    port, proxy = free_port(), free_port()
    mock = subprocess.Popen([sys.executable, "-m", "bench.scale.upstream", str(port), str(STEP_MS)])
    url = f"http://127.0.0.1:{port}/v1"
    params = {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none"}
    config = {"model_list": [{"model_name": MODEL, "litellm_params": params}], "general_settings": {"master_key": KEY}}
    (folder / "litellm.json").write_text(json.dumps(config))
    arguments = ["--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(proxy)]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with (folder / "litellm.log").open("wb") as log:
        litellm = subprocess.Popen([command, *arguments], env=environment, stdout=log, stderr=log)
    stack = Stack(folder / "stack", PENSTOCK_SEQUENCES_MAX="512")
    worker = stack.worker(MODEL, "--upstream", url)
    try:
        if not until(lambda: answers(f"http://127.0.0.1:{proxy}/health/liveliness"), seconds=READY_S):
            raise TimeoutError(f"LiteLLM does not answer: {(folder / 'litellm.log').read_text()[-2000:]}")
        yield [
            Relay("none", url, MODEL, [mock.pid], []),
            Relay("LiteLLM proxy", f"http://127.0.0.1:{proxy}/v1", MODEL, [litellm.pid], []),
            Relay("Penstock", f"{stack.base}/v1", MODEL, [stack.api.pid, worker.pid], [stack.redis.pid]),
        ]
    finally:
        for process in (mock, litellm, worker):
            process.kill()
            process.wait()
        stack.stop()


@main.command()
def quota() -> None:
    """Send 300 jobs at once, 100 of them interactive and 200 of batches, to two workers of a server that takes 60
    requests a minute and answers 429 to more. What it took is counted from the server's first request on, and the time
    until then apart: 300 clients in one process are slow to begin."""
    asyncio.run(_quota())


class Metered:
    """A server that keeps a quota of requests a minute, as a bucket, and answers in one chunk."""

    def __init__(self) -> None:
        self.refused = 0
        self.order: list[str] = []
        self.first_at = 0.0
        self._level, self._at = float(QUOTA), time.monotonic()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body, now = await request.json(), time.monotonic()
        self.first_at = self.first_at or now
        self._level = min(self._level + (now - self._at) * QUOTA / 60, QUOTA)
        self._at = now
        if self._level < 1:
            self.refused += 1
            wait = str((1 - self._level) * 60 / QUOTA)
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"retry-after": wait})
        self._level -= 1
        self.order.append(body["messages"][0]["content"])
        chunk = {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}
        text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")


async def _quota() -> None:
    metered, app = Metered(), web.Application()
    app.router.add_post("/v1/chat/completions", metered.chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
    arguments = [MODEL, "--upstream", f"http://127.0.0.1:{port}/v1", "--engine-option", f"requests_per_minute={QUOTA}"]
    with tempfile.TemporaryDirectory() as folder:
        stack = await asyncio.to_thread(Stack, Path(folder), PENSTOCK_INTERACTIVE_QUEUE_DEADLINE_S="600")
        workers = [await asyncio.to_thread(stack.worker, *arguments) for _ in range(2)]
        try:
            began = time.monotonic()
            failed = await _ask_all(stack.base)
            ended = time.monotonic()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            await asyncio.to_thread(stack.stop)
    await runner.cleanup()
    best = (JOBS - QUOTA) * 60 / QUOTA
    served = metered.order[QUOTA:]  # after the first burst, which takes whatever came first
    urgent = len(served) - served[::-1].index("interactive") if "interactive" in served else 0
    early = served[:urgent].count("batch")
    result: dict[str, float] = {
        "jobs": JOBS,
        "failed": failed,
        "sending_s": round(metered.first_at - began, 1),
        "took_s": round(ended - metered.first_at, 1),
        "best_s": best,
        "refused": metered.refused,
    }
    result |= {"batch_jobs_before_the_last_interactive_one": early}
    print(result)
    (RESULTS / "upstream-quota.json").write_text(json.dumps(result, indent=1) + "\n")


async def _ask_all(base: str) -> int:
    """Send the jobs of batches first, then the interactive ones; return how many failed."""
    limits = httpx.Limits(max_connections=JOBS)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(kind: str) -> bool:
            body = {"model": MODEL, "messages": [{"role": "user", "content": kind}]}
            answer = await client.post(f"{base}/v1/chat/completions", json=body, headers={"x-penstock-priority": kind})
            return answer.status_code == 200

        kinds = ["batch"] * (JOBS - URGENT) + ["interactive"] * URGENT
        return (await asyncio.gather(*map(one, kinds))).count(False)


if __name__ == "__main__":
    main()
