"""Hostile clients: bodies, answers and jobs that every process must survive and that no other client may feel."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.chaos.act import Act
from bench.chaos.http import Broken, ask, call
from bench.chaos.judge import percentile
from bench.chaos.keyring import limited_key
from bench.chaos.site import Process
from bench.chaos.story import Way

CHAT, COMPLETIONS, TOKENIZE, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/responses"
BODY_BYTES = 3_990_000  # just below the limit of a body
LIVE_S = 0.5  # the bound for /health/live meanwhile
GROWTH_MAX = 200 << 20  # bytes by which one body may grow an API process
WIDE_WAIT_S = 1.0  # bound for other clients beside wide jobs in the short form; the long form has a ratio
PROBE_S = 0.1  # between two of those clients
LONG_PROMPT = " ".join(
    f"w{word}" for word in range(6000)
)  # a dozen steps, during which other choices wait for its blocks


def repeated(piece: str, *, before: str = "", after: str = "") -> bytes:
    """Make a body of the greatest allowed size."""
    return (before + piece * ((BODY_BYTES - len(before) - len(after)) // len(piece)) + after).encode()


def many_fields(model: str) -> bytes:
    fields = ",".join(f'"f{number:06}":0' for number in range(BODY_BYTES // 13))
    return f'{{"model":"{model}","messages":[{{"role":"user","content":"a"}}],{fields}}}'.encode()


# Name, path, and a function from the model's name to the body.
HOSTILE: list[tuple[str, str, Callable[[str], bytes]]] = [
    ("zeros", CHAT, lambda m: repeated("0,", before=f'{{"model":"{m}","messages":[', after="0]}")),
    ("empty objects", CHAT, lambda m: repeated("{},", before=f'{{"model":"{m}","messages":[', after="{}]}")),
    ("unknown fields", CHAT, many_fields),
    ("mixed prompts", COMPLETIONS, lambda m: repeated('"a",0,', before=f'{{"model":"{m}","prompt":[', after="0]}")),
    ("brackets", CHAT, lambda m: repeated("[", before=f'{{"model":"{m}","messages":')),
    ("a prompt of words", COMPLETIONS, lambda m: repeated("w ", before=f'{{"model":"{m}","prompt":"', after='"}')),
    ("a text of words", TOKENIZE, lambda m: repeated("w ", before=f'{{"model":"{m}","prompt":"', after='"}')),
    ("empty items", RESPONSES, lambda m: repeated("{},", before=f'{{"model":"{m}","input":[', after="{}]}")),
]
ANSWERED = {TOKENIZE}  # a legal request, if a large one: the scripted engine's tokens have no length limit


class Pulse:
    """Measures the slowest answer of /health/live while the block runs."""

    def __init__(self, base: str) -> None:
        self._url = f"{base}/health/live"
        self._over = False
        self.slowest_s = 0.0

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        await self._beating

    async def _beat(self) -> None:
        while not self._over:
            began = time.monotonic()
            await call(self._url, method="GET")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            await asyncio.sleep(0.02)


async def bodies(act: Act) -> None:
    """Send each hostile body: it must be refused, while its process answers others and hardly grows."""
    for _ in range(act.rounds):
        for what, path, body in HOSTILE:
            act.strike()
            api, base = act.rng.choice([each for each in act.site.apis if each[0].alive])
            before = _resident(api, "VmRSS", reset=True)
            async with Pulse(base) as pulse:
                status = await _status(base + path, body(act.site.model))
            if status not in range(400, 500) and path not in ANSWERED:
                act.blame("I11", f"{what} for {path}: status {status}")
            if pulse.slowest_s > LIVE_S:
                act.blame("I11", f"{what} for {path}: /health/live took {pulse.slowest_s:.2f} s meanwhile")
            if (grown := _resident(api, "VmHWM") - before) > GROWTH_MAX:
                act.blame("I11", f"{what} for {path}: its process grew by {grown >> 20} MiB")


async def _status(url: str, body: bytes) -> int:
    """Return the status of a request, or 0 without an answer."""
    try:
        async with asyncio.timeout(60):
            answer = await ask(url, body=body, headers={"authorization": "Bearer vandal"})
    except (Broken, TimeoutError):
        return 0
    answer.close()
    return answer.status


def _resident(process: Process, what: str, *, reset: bool = False) -> int:
    """Read the resident bytes now (`VmRSS`), or their peak since the last reset (`VmHWM`)."""
    folder = Path("/proc") / str(process.pid)
    if reset:
        (folder / "clear_refs").write_text("5")
    found = next(line for line in (folder / "status").read_text().splitlines() if line.startswith(what))
    return int(found.split()[1]) << 10


async def unreadable(act: Act) -> None:
    """Let a parser, a grammar or a detokenizer raise: one job must fail, and no worker may die."""
    before = {worker.pid for worker in act.site.live_workers()}
    for number in range(act.rounds):
        fault, way = ("read", "grammar", "decode")[number % 3], (Way.WHOLE, Way.RESUME)[number % 2]
        content = f"question {number} fault:{fault}@{act.rng.randint(0, 40)}"
        story = act.load.story(way, content=content, n=1, expects=frozenset({"engine_error"}))
        act.strike()
        await asyncio.wait([act.load.add(story)])
    if dead := before - {worker.pid for worker in act.site.live_workers()}:
        act.blame("I11", f"{len(dead)} workers died of answers that cannot be read")


async def streams_cut(act: Act) -> None:
    """Cut streams between two frames of one event: the finish after the last text must still come."""
    for _ in range(act.rounds):
        stories = [act.load.story(Way.RESUME, n=1, tokens=act.rng.randint(20, 40)) for _ in range(16)]
        for story in stories:
            story.cut_after = act.rng.choice([story.tokens, act.rng.randint(1, story.tokens)])
        act.strike()
        await asyncio.wait([act.load.add(story) for story in stories])


async def wide_jobs(act: Act) -> None:
    """Let one tenant send jobs of 16 prompts with 16 choices, two for each worker, while another sends single ones. A
    new request always waits for the running step, so its wait is compared with the wait beside jobs of one sequence
    each that the same tenant has in three of four places."""
    rng, site = act.rng, act.site
    seconds = 20.0 if act.long else 2.0
    prompts = [f"prompt {number}" for number in range(16)]
    body = {"model": site.model, "prompt": prompts, "n": 16, "max_tokens": 80 if act.long else 8}
    headers = {"authorization": "Bearer wide"}
    narrow = {"model": site.model, "prompt": "narrow", "max_tokens": int(50 * (seconds + 2)), "ignore_eos": True}
    beside = [
        asyncio.create_task(call(f"{rng.choice(site.bases())}{COMPLETIONS}", body=narrow, headers=headers))
        for _ in range(3 * site.places(site.model) // 4)
    ]
    await asyncio.sleep(0.5)
    before = await _probed(act, seconds)
    await asyncio.gather(*beside)
    for _ in range(act.rounds):
        act.strike()
        wide = [
            asyncio.create_task(call(f"{rng.choice(site.bases())}{COMPLETIONS}", body=body, headers=headers))
            for _ in range(2 * site.workers_max)
        ]
        await asyncio.sleep(0.5)
        during = await _probed(act, seconds)
        act.ratio("p99 TTFT of others beside wide jobs", during / before)
        if during - before > WIDE_WAIT_S:
            act.blame("I11", f"others waited {during:.2f} s beside wide jobs, {before:.2f} s without them")
        for status, answer in await asyncio.gather(*wide):
            if status != 200 or len(answer["choices"]) != 256:
                act.blame("I4", f"a wide job was answered with {status} and {len(answer.get('choices', []))} choices")


async def _probed(act: Act, seconds: float) -> float:
    """Measure the 99th percentile of the TTFT of requests that arrive at a fixed rate."""
    stories = []
    for _ in range(int(seconds / PROBE_S)):
        stories.append(act.load.story(Way.PLAIN, tokens=10, tenant="narrow"))
        act.load.add(stories[-1])
        await asyncio.sleep(PROBE_S)
    await asyncio.gather(*[story.heard.wait() for story in stories])
    return percentile([story.waited for story in stories if story.waited], 0.99)


async def refused(act: Act) -> None:
    """Send requests beyond a key's limit: none of them may leave a key in Redis."""
    site = act.site
    asked = {"model": site.model, "messages": [{"role": "user", "content": "word " * 10_000}], "max_tokens": 1}
    again = {"model": site.model, "input": "word " * 10_000, "max_output_tokens": 16}
    for _ in range(act.rounds):
        _, secret = await limited_key(site, requests_per_minute=1)
        headers = {"authorization": f"Bearer {secret}"}
        base = act.rng.choice(site.bases())
        status, _ = await call(base + CHAT, body=asked, headers=headers)
        if status != 200:
            act.blame("I13", f"the first request of a key was answered with {status}")
        before = await asyncio.to_thread(site.keys)
        act.strike()
        tries = [(CHAT, asked | {"store": True}), (CHAT, asked | {"store": True, "stream": True})]
        tries += [(RESPONSES, again), (RESPONSES, again | {"background": True}), (RESPONSES, again | {"stream": True})]
        for path, body in tries * 3:
            status, _ = await call(base + path, body=body, headers=headers)
            if status != 429:
                act.blame("I13", f"beyond its limit a key's {path} was answered with {status}")
        for name in sorted(await asyncio.to_thread(site.keys) - before):
            act.blame("I13", f"a refused request left {name}")


async def guesses(act: Act) -> None:
    """Let one tenant send the same prompt to all workers; other tenants that send it must not see that it is cached."""
    site = act.site
    url = f"{act.rng.choice(site.bases())}{CHAT}"
    for number in range(act.rounds):
        secret = " ".join(f"s{number}w{word}" for word in range(100))
        body = {"model": site.model, "messages": [{"role": "user", "content": secret}], "max_tokens": 20}

        async def cached(tenant: str, body: dict[str, Any] = body) -> int:
            _, answer = await call(url, body=body, headers={"authorization": f"Bearer {tenant}"})
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        act.strike()
        first = await asyncio.gather(*[cached("victim") for _ in range(site.places(site.model))])
        if not any(first):
            act.blame("I12", "not even the tenant itself shares its prompts: nothing is proven")
        for guesser in range(4):
            if told := await cached(f"guesser {guesser}"):
                act.blame("I12", f"{told} tokens of another tenant's prompt were said to be cached")


async def cancelled_early(act: Act) -> None:
    """Let clients leave while the second choice waits for the blocks that the first one computes. The muster after the
    scenario shows whether the workers noticed their free room."""
    body = {"model": act.site.model, "messages": [{"role": "user", "content": LONG_PROMPT}], "max_tokens": 100, "n": 2}

    async def leave() -> None:
        url = f"{act.rng.choice(act.site.bases())}{CHAT}"
        with suppress(TimeoutError, Broken):
            async with asyncio.timeout(act.rng.uniform(0.05, 0.4)):
                await ask(url, body=body, headers={"authorization": "Bearer hasty"})

    for _ in range(act.rounds):
        act.strike()
        await asyncio.gather(*[leave() for _ in range(3 * act.site.workers_max)])
        await act.pause(0.5, 1.0)
