"""Runs every kind of request at once, for long: `python -m bench.soak --minutes 30`.

Random requests go to a real stack with the built-in model and a KV cache that is too small for all of them: chats of
one or several choices, with and without a JSON schema, completions with echo, embeddings, clients that leave, prompts
that are too long, invalid grammars. At the end every block of the cache must be free, no process may have grown, and no
answer may be lost.
"""

import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import redis

from bench.stack import Stack

MODEL = "penstock-tiny"
CLIENTS = 12
SAMPLE_S = 10.0
SETTINGS = {"PENSTOCK_KV_CACHE_GIB": "0.006", "PENSTOCK_JOB_TTL_S": "60", "PENSTOCK_FAILED_TTL_S": "60"}
TOPICS = ["a fox", "two friends", "the sea", "a lighthouse", "2 + 2", "the capital of France", "rain", "an old clock"]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory in MB, and the blocks and sequences that the worker's metrics count."""

    seconds: float
    worker_mb: float
    api_mb: float
    redis_mb: float
    blocks: float
    sequences: float


class Unexpected(Exception):
    """An answer does not match its request."""


class Client:
    """Sends one random request after the other."""

    def __init__(self, base: str, seed: int, counts: Counter[str]) -> None:
        self._http = httpx.AsyncClient(base_url=base, timeout=120)
        self._random = random.Random(seed)
        self._counts = counts

    async def run(self, until: float) -> None:
        ways: list[tuple[int, Callable[[], Awaitable[str]]]] = [
            (6, self._chat),
            (4, self._leave),
            (2, self._form),
            (2, self._complete),
            (2, self._embed),
            (1, self._too_long),
            (1, self._no_grammar),
        ]
        weights, calls = zip(*ways, strict=True)
        async with self._http:
            while time.monotonic() < until:
                [call] = self._random.choices(calls, weights)
                self._counts[await call()] += 1

    def _body(self, **more: Any) -> dict[str, Any]:
        beginning = "Answer as you would answer a child, in short words. " * self._random.choice([0, 1, 8])
        text = f"{beginning}Tell me about {self._random.choice(TOPICS)}."
        chosen = {"temperature": self._random.choice([0, 0.7, 1.3]), "top_p": self._random.choice([1, 0.9])}
        tokens = {"max_tokens": self._random.randint(1, 300), "n": self._random.choice([1, 1, 1, 3])}
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], **chosen, **tokens, **more}

    async def _chat(self) -> str:
        body = self._body(stream=True, logprobs=self._random.random() < 0.2)
        reasons = 0
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                reasons += '"finish_reason":"' in line
        _require(answer.status_code == 200 and reasons == body["n"], f"{answer.status_code}, {reasons} of {body['n']}")
        return "chat"

    async def _leave(self) -> str:
        lines = self._random.randint(0, 60)
        async with self._http.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as answer:
            _require(answer.status_code == 200, str(answer.status_code))
            async for _ in answer.aiter_lines():
                lines -= 1
                if lines < 0:
                    return "client left"
        return "chat"

    async def _form(self) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        answer = await self._post("/v1/chat/completions", self._body(response_format=form, max_tokens=200))
        for choice in answer["choices"]:
            _require(choice["finish_reason"] == "length" or "name" in json.loads(choice["message"]["content"]), "form")
        return "form"

    async def _complete(self) -> str:
        prompts = self._random.sample(TOPICS, 3)
        body = {"model": MODEL, "prompt": prompts, "echo": True, "logprobs": 2, "max_tokens": 20, "n": 2}
        answer = await self._post("/v1/completions", body)
        _require(len(answer["choices"]) == 6, "choices")
        return "completion"

    async def _embed(self) -> str:
        texts = self._random.choices(TOPICS, k=self._random.randint(1, 40))
        answer = await self._post("/v1/embeddings", {"model": MODEL, "input": texts})
        _require(len(answer["data"]) == len(texts), "vectors")
        return "embedding"

    async def _too_long(self) -> str:
        body = self._body() | {"messages": [{"role": "user", "content": "word " * 5000}]}
        await self._post("/v1/chat/completions", body, status=400)
        return "too long"

    async def _no_grammar(self) -> str:
        body = self._body(structured_outputs={"regex": "(" * self._random.randint(1, 50)})
        await self._post("/v1/chat/completions", body, status=400)
        return "no grammar"

    async def _post(self, path: str, body: dict[str, Any], *, status: int = 200) -> dict[str, Any]:
        answer = await self._http.post(path, json=body)
        _require(answer.status_code == status, f"{answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found


def _require(truth: bool, what: str) -> None:
    if not truth:
        raise Unexpected(what)


class Watch:
    """Samples the memory and the metrics of the stack."""

    def __init__(self, stack: Stack, worker_pid: int) -> None:
        self._worker = psutil.Process(worker_pid)
        self._api = psutil.Process(stack.api.pid)
        self._redis = redis.Redis.from_url(stack.redis.url, decode_responses=True)
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(SAMPLE_S)

    def look(self) -> Sample:
        page = self.page()
        info: Any = self._redis.info("memory")
        sample = Sample(
            seconds=round(time.monotonic() - self._began, 1),
            worker_mb=round(self._worker.memory_info().rss / 2**20, 1),
            api_mb=round(self._api.memory_info().rss / 2**20, 1),
            redis_mb=round(info["used_memory"] / 2**20, 1),
            blocks=_metric(page, "penstock_cache_blocks_used"),
            sequences=_metric(page, "penstock_running_sequences"),
        )
        self.samples.append(sample)
        return sample

    def page(self) -> str:
        """Fetch the worker's metrics."""
        [key] = self._redis.scan_iter("rq:worker:*")
        url: Any = self._redis.hget(key, "url")
        return httpx.get(f"{url}/metrics").text


def _metric(page: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


async def soak(stack: Stack, watch: Watch, minutes: float, seed: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    until = time.monotonic() + minutes * 60
    watching = asyncio.create_task(watch.run())
    await asyncio.gather(*[Client(stack.base, seed + number, counts).run(until) for number in range(CLIENTS)])
    watching.cancel()
    await asyncio.sleep(3)  # time for the API to notice the last clients that left
    watch.look()
    return counts


def report(watch: Watch, counts: Counter[str]) -> str:
    warm = len(watch.samples) // 5
    early, late = watch.samples[warm : 2 * warm], watch.samples[-warm - 1 : -1]
    page = watch.page()
    lines = ["| | a fifth into it | at the end |", "|---|---|---|"]
    for name in ("worker_mb", "api_mb", "redis_mb"):
        values = [statistics.median(getattr(each, name) for each in some) for some in (early, late)]
        lines.append(f"| {name.replace('_mb', '')}, MB | {values[0]:.0f} | {values[1]:.0f} |")
    last = watch.samples[-1]
    lines.append(f"| blocks in use | {statistics.median(each.blocks for each in early):.0f} | {last.blocks:.0f} |")
    lines.append(f"| sequences | {statistics.median(each.sequences for each in early):.0f} | {last.sequences:.0f} |")
    names = ("generated_tokens_total", "cached_prompt_tokens_total", "preempted_sequences_total", "failed_steps_total")
    said = ", ".join(f"{name.removesuffix('_total')} {_metric(page, f'penstock_{name}'):.0f}" for name in names)
    return "\n".join([*lines, "", f"{dict(counts.most_common())}", said])


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write every sample to this file, as JSON.")
def main(minutes: float, seed: int, out: Path | None) -> None:
    """Run the soak test and print its table. The exit status is 1 if anything is left in use."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), **SETTINGS)
        worker = stack.worker("-m", "builtin")
        try:
            watch = Watch(stack, worker.pid)
            counts = asyncio.run(soak(stack, watch, minutes, seed))
            print(report(watch, counts))
        finally:
            worker.terminate()
            worker.wait()
            stack.stop()
    if out:
        out.write_text(json.dumps([asdict(each) for each in watch.samples], indent=1))
    sys.exit(int(watch.samples[-1].blocks > 0 or watch.samples[-1].sequences > 0))


if __name__ == "__main__":
    main()
