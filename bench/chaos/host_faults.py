"""Faults of a host: it is killed in the middle of loads and swaps, its workers are killed, and a load fails."""

import asyncio
import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from bench.chaos.act import Act
from bench.chaos.http import call
from bench.chaos.site import Process
from bench.chaos.story import Story, Way
from shared.models_file.reading import parse
from workers.host.hosted_models import hosted_specs

WAYS = (Way.PLAIN, Way.RESUME, Way.RETRY, Way.WHOLE)
ROUND_STORIES = 6  # of each model
TOKENS = (150, 250)  # 3 to 5 seconds, which is longer than a turn
TAKES = 150 * 2**20  # so that one of the two models fits at a time
STOPS_S = 20.0
GONE_S = 90.0  # for two swaps and a load that fails, on a slow machine
FILE = """
[host]
memory = "250MiB"
[defaults]
engine = "scripted"
[models.host-a]
[models.host-b]
[models.host-gone]
engine = "native"
source = "./gone"
"""


class HostSite:
    """A host of a models file, on the site's Redis."""

    def __init__(self, act: Act) -> None:
        self._site = act.site
        self._folder = act.site.folder / f"host-{act.rng.getrandbits(30)}"
        self._file = self._folder / "models.toml"
        self.host: Process | None = None

    def start(self) -> None:
        if not self._file.exists():
            self._prepare()
        options = [f"--models={self._file}", f"--data={self._folder}"]
        self.host = self._site.add_process(["host", *options], log="hosts.log")

    def _prepare(self) -> None:
        (self._folder / "host").mkdir(parents=True)
        self._file.write_text(FILE)
        specs = hosted_specs(parse(FILE.encode(), self._file), 0)
        learnt = {name: {"spec": spec.digest, "host_bytes": TAKES, "load_s": 0.5} for name, spec in specs.items()}
        (self._folder / "host" / "learnt.json").write_text(json.dumps(learnt))

    async def listed(self) -> None:
        await self._site.until(
            lambda: self._site.client.sismember("penstock:models", "host-gone"), "models of the host"
        )

    def pids(self) -> list[int]:
        """Return the process ids of its workers."""
        return [pid for path in self._records() if (pid := _pid(path)) and psutil.pid_exists(pid)]

    async def stop(self) -> list[int]:
        """Stop the host; return the workers that it left."""
        if self.host:
            self.host.send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.host.popen.wait, STOPS_S)
            self.host.end()
        left = self.pids()
        for pid in left:
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        return left

    def _records(self) -> list[Path]:
        return list((self._folder / "host" / "workers").glob("*.json"))


async def host_killed(act: Act) -> None:
    """Ask for two models that do not fit together, and kill the host, a worker of it, or both, while they swap."""
    site = HostSite(act)
    site.start()
    try:
        await site.listed()
        for number in range(act.rounds):
            told = [act.load.add(each) for each in _stories(act)]
            await act.pause(0.5, 3.0)
            act.strike()
            if number % 3 != 1:
                await _kill_host(act, site)
            if number % 3:
                _kill_worker(act, site)
            await _ask_for_what_is_gone(act)
            await asyncio.wait(told)
        await asyncio.to_thread(_require_swaps, act)
    finally:
        for pid in await site.stop():
            act.blame("I6", f"the host has left its worker {pid}")


def _require_swaps(act: Act) -> None:
    """Without an answer that was cut off by a swap, nothing was tried."""
    timelines = [act.site.client.hget(f"rq:job:{story.job_id}", "timeline") for story in act.load.stories]
    swapped = sum("released by" in str(each) for each in timelines)
    if not swapped:
        act.blame("I1", "no answer was cut off by a swap")


async def _kill_host(act: Act, site: HostSite) -> None:
    assert site.host
    site.host.end()
    await act.pause(0.1, 1.5)
    site.start()


def _kill_worker(act: Act, site: HostSite) -> None:
    if pids := site.pids():
        with suppress(psutil.Error):
            psutil.Process(act.rng.choice(pids)).kill()


async def _ask_for_what_is_gone(act: Act) -> None:
    """A model that cannot be loaded fails its job, and says why."""
    body = {"model": "host-gone", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    try:
        async with asyncio.timeout(GONE_S):
            status, said = await call(f"{act.site.bases()[0]}/v1/chat/completions", body=body)
    except TimeoutError:
        act.blame("I7", f"a model that cannot be loaded has not failed its job within {GONE_S:g} s")
        return
    error = said.get("error", {})
    if status != 503 or error.get("code") != "model_not_loaded" or "there is no folder" not in error.get("message", ""):
        act.blame("I7", f"a model that cannot be loaded answers {status} {said}")


def _stories(act: Act) -> list[Story]:
    """Make requests for both models, in turn."""
    stories = []
    for model in ("host-a", "host-b") * ROUND_STORIES:
        story = act.load.story(act.rng.choice(WAYS), n=1, tokens=act.rng.randint(*TOKENS))
        story.model = model
        stories.append(story)
    return stories


def _pid(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(json.loads(path.read_text())["pid"])
    return 0
