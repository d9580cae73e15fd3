"""Faults of a site where every kind of engine serves: of workers, of the processes in which their engines compute, of
the servers behind upstreams."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.chaos import faults
from bench.chaos.act import Act
from bench.chaos.batch_requests import answers_of, create, ended
from bench.chaos.engine_kinds import LOST
from bench.chaos.load import Asked
from bench.chaos.mixed_site import MixedSite, Server, body_of
from bench.chaos.site import Process, WorkerGroup
from bench.chaos.story import CHAT, Story, Way, said_in

TENANT = "load"
BATCH_ENDS_S = 300.0  # also where a killed vLLM must load again
FEW = 3
COMPUTING = (b"EngineCore", b"bench.chaos.mock_server")  # in their command lines
RAISING = "fault:raise@3"


async def everything(act: Act) -> None:
    """Play the faults of the short form one after the other while a batch runs, so that a killed vLLM loads while the
    others strike."""
    asked, batch_id = await _begin_batch(act)
    await workers_killed(act)
    await faults.redis_killed(act)
    await replays(act)
    await _judge_batch(act, asked, batch_id)


async def workers_killed(act: Act) -> None:
    """Kill a busy worker of each group, one shortly after the other, and one of the upstreams' servers. Where another
    process computes for the worker, it is killed instead every second time."""
    for number in range(act.rounds):
        await act.staffed()
        server = act.rng.choice(_site(act).servers)
        server.kill()
        for group in _shuffled(act):
            await _begun(act, group.model)
            worker = act.victim(group)
            jobs = await act.jobs_of(worker)
            began = act.strike(jobs)
            computing = await asyncio.to_thread(_computing, worker) if number % 2 == 0 else []
            if computing:
                computing[0].send_signal(signal.SIGKILL)
            else:
                worker.send(signal.SIGKILL)
            act.mark(f"{group.model}: {'worker' if group.count > 1 else 'only worker'} killed", began, 8, jobs)
        await _back(act, [server])
        await act.pause(1.0, 4.0)


async def _begun(act: Act, model: str) -> None:
    """Ask for some answers, and wait until one of them has begun."""
    stories = [act.load.story(Way.RESUME, model=model) for _ in range(FEW)]
    told = [act.load.add(story) for story in stories]
    heard = [asyncio.ensure_future(story.heard.wait()) for story in stories]
    await asyncio.wait([*heard, *told], return_when=asyncio.FIRST_COMPLETED)


async def workers_frozen(act: Act) -> None:
    """Freeze a worker of each group for two leases."""
    for _ in range(act.rounds):
        await act.staffed()
        victims = [act.victim(group) for group in _shuffled(act)]
        for worker in victims:
            act.strike(await act.jobs_of(worker))
            worker.send(signal.SIGSTOP)
        await act.pause(6.0, 7.0)
        for worker in victims:
            worker.send(signal.SIGCONT)
            await act.pause(0.0, 0.3)


async def engine_killed(act: Act) -> None:
    """Kill the processes that compute for a worker. The worker must end."""
    for _ in range(act.rounds):
        await act.staffed()
        for worker in act.site.live_workers():
            for process in await asyncio.to_thread(_computing, worker):
                act.strike(await act.jobs_of(worker))
                process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(worker.popen.wait, 30)
        await act.pause(1.0, 4.0)


async def server_killed(act: Act) -> None:
    """Kill one of the servers behind the upstream workers, sometimes both, and start it again."""
    for number in range(act.rounds):
        servers = _site(act).servers if number % 3 == 2 else [act.rng.choice(_site(act).servers)]
        act.strike(_open_jobs(act, {"tokens", "prefill", "restart"}))
        for server in servers:
            server.kill()
        await act.pause(0.5, 2.0)
        await _back(act, servers)
        await act.pause(2.0, 3.0)


async def nobody_works(act: Act) -> None:
    """Kill all workers. Then `rq info` must count the jobs of each model that wait and that were running."""
    site = act.site
    for _ in range(act.rounds):
        await act.staffed()
        act.load.stop()
        site.halted = set(site.models)
        act.strike()
        for worker in site.live_workers():
            worker.send(signal.SIGKILL)
        await site.until(lambda: not site.live_workers(), "the workers are dead")
        told = await _accepted(act)
        counts, info = await asyncio.to_thread(_counts, act), await asyncio.to_thread(_rq, act, "info")
        for at, model in enumerate(site.models):
            found = re.search(rf"^{model}\s.*?(\d+), (\d+) executing", info, re.MULTILINE)
            if found is None or (int(found[1]), int(found[2])) != counts[model] or counts[model][0] < FEW + at:
                act.blame("RQ", f"{model}: {counts[model]} wait and run, at least {FEW + at} wait, and rq says {found}")
        site.halted = set()
        await asyncio.wait(told)


async def _accepted(act: Act) -> list[asyncio.Task[None]]:
    """Ask each model some more questions than the one before, and wait until they are jobs."""
    models = [model for at, model in enumerate(act.site.models) for _ in range(FEW + at)]
    stories = [act.load.story(Way.RESUME, model=model) for model in models]
    told = [act.load.add(story) for story in stories]
    await act.site.until(lambda: all(story.job_id for story in stories), "the jobs are accepted")
    return told


async def replays(act: Act) -> None:
    """Let jobs fail; run them again by RQ's own command, by ours, and by other engines' models."""
    for _ in range(act.rounds):
        lost = await _lost(act, [act.load.story(Way.PLAIN, model="restart") for _ in range(FEW)])
        if len(lost) < FEW:
            act.blame("I4", f"{FEW - len(lost)} answers that broke off did not fail: nothing is proven")
            continue
        act.load.stop()
        requeued, replayed, elsewhere = lost
        await asyncio.to_thread(_rq, act, "requeue", "--queue", "restart", requeued.job_id)
        expected: list[tuple[str, str | None]] = [
            (requeued.job_id, requeued.right),
            (await _replay(act, replayed.job_id), replayed.right),
            (await _replay(act, elsewhere.job_id, "--to-model=prefill"), elsewhere.right),
            *[
                await _elsewhere(act, model)
                for model in act.site.models
                if model in ("native", "command", "class", "vllm")
            ],
        ]
        for job_id, right in expected:
            await _ends_right(act, job_id, right)


async def _elsewhere(act: Act, model: str) -> tuple[str, str]:
    """Let a job of the scripted engine fail and replay it by another model. Return the new job and its right answer."""
    expects = frozenset({"engine_error"})
    failing = act.load.story(Way.PLAIN, model="scripted", content=RAISING, right=None, expects=expects)
    await asyncio.wait([act.load.add(failing)])
    asked = Asked(content=RAISING, tokens=failing.tokens, right="", more={}, model=model)
    right = await _site(act).answer(asked)
    return await _replay(act, failing.job_id, f"--to-model={model}"), right


async def batches(act: Act) -> None:
    """Kill a worker of each group while a batch has requests of every model."""
    for _ in range(act.rounds):
        await act.staffed()
        act.load.stop()
        asked, batch_id = await _begin_batch(act)
        await act.pause(0.3, 1.0)
        for group in _shuffled(act):
            act.strike()
            act.victim(group).send(signal.SIGKILL)
            await act.pause(0.0, 0.3)
        await _judge_batch(act, asked, batch_id)


async def _begin_batch(act: Act) -> tuple[list[Asked], str]:
    """Create a batch of all chats of the script. Return what its lines ask, and its id."""
    chats = [each for each in _site(act).script if each.path == CHAT]
    asked = act.rng.sample(chats, len(chats))
    _, batch_id = await create(act, TENANT, [(each.path, body_of(each)) for each in asked])
    return asked, batch_id


async def _judge_batch(act: Act, asked: Sequence[Asked], batch_id: str) -> None:
    """Wait for the batch's end. Each of its lines must have its right answer, or an error that the model's promise
    allows."""
    batch = await ended(act, batch_id, TENANT, seconds=BATCH_ENDS_S)
    rows = await answers_of(act, batch, TENANT)
    if batch["status"] != "completed" or len(rows) != len(asked):
        act.blame("I4", f"a batch is {batch['status']} with {len(rows)} of {len(asked)} lines")
    for number, row in rows.items():
        _judge_row(act, asked[number], row)


def _judge_row(act: Act, asked: Asked, row: dict[str, object]) -> None:
    response: dict[str, object] = row.get("response") or {}  # type: ignore[assignment]
    body: dict[str, object] = response.get("body") or {}  # type: ignore[assignment]
    if response.get("status_code") == 200:
        texts = [said_in(choice["message"]) for choice in body["choices"]]  # type: ignore[attr-defined]
        if set(texts) != {asked.right}:
            act.blame("I2", f"batch, {asked.model}, {asked.more}: {texts[0][:60]!r}, not {asked.right[:60]!r}")
        return
    error = body.get("error") or row.get("error") or {}
    code = error.get("code") if isinstance(error, dict) else error
    if code not in asked.excused:
        act.blame("I4", f"batch, {asked.model}, {asked.more}: {code}")


async def _lost(act: Act, stories: Sequence[Story]) -> list[Story]:
    """Begin answers that cannot be continued, and kill the servers in their middle. Return those that failed."""
    told = [act.load.add(story) for story in stories]
    await asyncio.gather(*[story.heard.wait() for story in stories])
    act.strike({story.job_id for story in stories})
    for server in _site(act).servers:
        server.kill()
    await asyncio.wait(told)
    await _back(act, _site(act).servers)
    return [story for story in stories if story.problem in LOST]


async def _replay(act: Act, job_id: str, *arguments: str) -> str:
    """Replay a job by the command; return the new job's id."""
    command = [sys.executable, "-m", "cli", "jobs", "--redis-url", act.site.redis.url, "replay", job_id, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, cwd=act.site.code, capture_output=True, text=True)
    found = str(act.site.client.hget(f"rq:job:{job_id}", "replayed_as") or "")
    if done.returncode or not found:
        act.blame("I7", f"{job_id} is not replayed {arguments}: {done.stdout} {done.stderr}")
    return found


async def _ends_right(act: Act, job_id: str, right: str | None) -> None:
    """Read a job's stream to its end, and let the judge compare it."""
    if not job_id:
        return
    model = str(act.site.client.hget(f"rq:job:{job_id}", "origin"))
    story = act.load.story(Way.RESUME, model=model, name=f"again {job_id}", job_id=job_id, right=right)
    story.excused = frozenset()
    await asyncio.wait([act.load.add(story)])


async def _back(act: Act, servers: Sequence[Server]) -> None:
    for server in servers:
        server.start()
    await act.site.until(lambda: all(server.ready() for server in servers), "the mock servers")


def _shuffled(act: Act) -> list[WorkerGroup]:
    groups = list(act.site.groups)
    return act.rng.sample(groups, len(groups))


def _open_jobs(act: Act, models: set[str]) -> set[str]:
    return {story.job_id for story in act.load.open() if story.job_id and story.model in models}


def _computing(worker: Process) -> list[psutil.Process]:
    """List the processes other than the worker that compute its model: vLLM's engine core, a server of its own."""
    found = []
    for process in psutil.Process(worker.pid).children(recursive=True):
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if any(name in title for name in COMPUTING):
            found.append(process)
    return found


def _counts(act: Act) -> dict[str, tuple[int, int]]:
    """Count the jobs of each model that wait and that run, by the jobs themselves."""
    client, found = act.site.client, dict.fromkeys(act.site.models, (0, 0))
    for key in client.scan_iter("rq:job:*", count=1000):
        model, status = map(str, client.hmget(key, "origin", "status"))
        waiting, running = found[model]
        found[model] = (waiting + (status == "queued"), running + (status == "started"))
    return found


def _rq(act: Act, *arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "rq"), *arguments, "-u", act.site.redis.url]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _site(act: Act) -> MixedSite:
    assert isinstance(act.site, MixedSite)
    return act.site
