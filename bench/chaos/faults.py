"""Faults of processes, Redis and the network, and too much load. Each fault is seeded."""

import asyncio
import os
import signal
import time
from typing import Any

from bench.chaos.act import Act
from bench.chaos.http import ask
from bench.chaos.judge import percentile
from bench.chaos.load import Load
from bench.chaos.story import Story, Way

ROOMY_CLIENTS = (
    32  # they ask for 46 sequences at a time, so one of the 64 places is always free and no wait is by chance
)
STAYING = {Way.PLAIN: 1, Way.RESUME: 1, Way.RETRY: 1, Way.WHOLE: 1}


async def worker_killed(act: Act) -> None:
    for _ in range(act.rounds):
        await act.staffed()
        worker = act.victim()
        jobs = await act.jobs_of(worker)
        began = act.strike(jobs)
        worker.send(signal.SIGKILL)
        act.mark("worker killed", began, 8, jobs)
        await act.pause(1.0, 4.0)


async def worker_frozen(act: Act) -> None:
    for _ in range(act.rounds):
        worker = act.victim()
        jobs = await act.jobs_of(worker)
        began = act.strike(jobs)
        worker.send(signal.SIGSTOP)
        act.mark("worker frozen", began, 8, jobs)
        await act.pause(6.0, 7.0)
        worker.send(signal.SIGCONT)
        await act.pause(0.5, 1.5)


async def worker_told_to_stop(act: Act) -> None:
    for number in range(act.rounds):
        await act.staffed()
        worker = act.victim()
        jobs = await act.jobs_of(worker)
        began = act.strike(jobs)
        worker.send(signal.SIGTERM)
        if number % 3 == 0:
            act.mark("worker told to stop", began, 8, jobs)
        else:
            await act.pause(0.1, 1.5)
            worker.send(signal.SIGTERM if number % 3 == 1 else signal.SIGKILL)
        await act.pause(3.0, 4.0)


async def engine_fails(act: Act) -> None:
    for number in range(act.rounds):
        fault = ("raise", "oom", "hang")[number % 3]
        ends = frozenset({"engine_error"} if fault != "hang" else {"poison"})
        at = act.rng.randint(0, 60)
        act.strike()
        told = act.load.add(act.load.story(Way.WHOLE, content=f"fault:{fault}@{at}", n=1, expects=ends))
        await (asyncio.wait([told]) if fault == "hang" else act.pause(0.3, 1.0))


async def poison(act: Act) -> None:
    for _ in range(act.rounds):
        at = act.rng.randint(0, 60)
        story = act.load.story(Way.RESUME, content=f"fault:exit@{at}", n=1, expects=frozenset({"poison"}))
        act.strike()
        await asyncio.wait([act.load.add(story)])


async def api_dies(act: Act) -> None:
    for number in range(act.rounds):
        api, _ = act.rng.choice([pair for pair in act.site.apis if pair[0].alive])
        act.strike()
        if number % 2:
            hasty: dict[str, Any] = {"headers": {"x-penstock-grace-s": "2"}, "silence_s": 1.0, "n": 1, "tokens": 500}
            told = [act.load.add(act.load.story(Way.RESUME, **hasty)) for _ in range(10)]
            await act.pause(0.5, 1.0)
            api.send(signal.SIGSTOP)
            await asyncio.wait(told, timeout=act.rng.uniform(2.5, 4.0))
            api.send(signal.SIGCONT)
        else:
            api.send(signal.SIGKILL)
            await act.site.add_api()
        await act.pause(0.5, 2.0)


async def clients_misbehave(act: Act) -> None:
    """Open a crowd of connections at once and drop them half-read."""
    body = {"model": act.site.model, "messages": [{"role": "user", "content": "left"}], "max_tokens": 10**4}
    headers = {"authorization": "Bearer vandal"}
    for _ in range(act.rounds):
        act.strike()
        base = act.rng.choice(act.site.bases())
        crowd = [ask(f"{base}/v1/chat/completions", body=body | {"stream": True}, headers=headers) for _ in range(200)]
        answers = await asyncio.gather(*crowd, return_exceptions=True)
        await act.pause(0.2, 1.0)
        for answer in answers:
            if not isinstance(answer, BaseException):
                answer.close()
        await act.pause(0.5, 1.0)


async def redis_killed(act: Act) -> None:
    for number in range(act.rounds):
        down_s = (1, 5)[number % 2] if not act.long or number % 10 else 30
        act.strike()
        act.site.redis.kill()
        await asyncio.sleep(down_s)
        await asyncio.to_thread(act.site.redis.start)
        act.mark("redis is back", time.monotonic(), 1.9)
        await act.pause(2.0, 3.0)


async def redis_drops_and_stalls(act: Act) -> None:
    ways = [
        ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
        ("CLIENT", "KILL", "TYPE", "pubsub"),
        ("CLIENT", "PAUSE", "2000", "ALL"),
        None,
    ]
    for number in range(act.rounds):
        act.strike()
        if way := ways[number % len(ways)]:
            await asyncio.to_thread(act.site.client.execute_command, *way)
        else:
            await redis_stalls(act, seconds=5 if act.long else 3)
        await act.pause(2.0, 3.0)


async def redis_stalls(act: Act, seconds: float) -> None:
    """Freeze Redis, as a slow command or a busy machine does; DEBUG SLEEP is not allowed since Redis 7."""
    os.kill(act.site.redis.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(act.site.redis.pid, signal.SIGCONT)


async def redis_full(act: Act) -> None:
    for _ in range(act.rounds):
        act.strike()
        act.site.client.config_set("maxmemory", 1)
        await act.pause(1.0, 2.5)
        act.site.client.config_set("maxmemory", "2gb")
        await act.pause(1.0, 2.0)


async def log_tail_cut(act: Act) -> None:
    """Cut the end of the append-only file, as a power failure does."""
    for _ in range(act.rounds):
        act.strike()
        act.site.redis.kill()
        files = [path for path in (act.site.folder / "redis").rglob("*.aof*") if path.suffix == ".aof"]
        newest = max(files, key=lambda path: path.stat().st_mtime)
        size = newest.stat().st_size
        os.truncate(newest, max(0, size - act.rng.randint(100, 20_000)))
        await asyncio.to_thread(act.site.redis.start)
        await act.pause(2.0, 4.0)


async def network_breaks(act: Act) -> None:
    proxy = act.site.proxy
    for number in range(act.rounds):
        act.strike()
        match number % 4:
            case 0:
                proxy.delay_s = 0.2
                await act.pause(1.0, 3.0)
            case 1:
                for _ in range(10):
                    proxy.reset()
                    await act.pause(0.05, 0.3)
            case 2:
                proxy.mute = True
                await act.pause(1.0, 4.0)
                proxy.mute = False
                proxy.reset()
            case 3:
                proxy.split = True
                await act.pause(1.0, 2.0)
        proxy.delay_s, proxy.split = 0.0, False
        await act.pause(0.5, 1.5)


async def clock_wrong(act: Act) -> None:
    for number in range(act.rounds):
        skew = act.site.skewed((3600.0, -3600.0)[number % 2])
        jobs = await act.jobs_of(act.victim())
        act.strike(jobs)
        skewed = act.site.add_worker(environment=skew)
        act.site.live_workers()[0].send(signal.SIGKILL)
        api = await act.site.add_api(**skew)
        await act.pause(4.0, 5.0)
        for process in (skewed, api):
            process.send(signal.SIGKILL)


async def operator_cuts(act: Act) -> None:
    stream = f"penstock:stream:{act.site.model}"
    for number in range(act.rounds):
        act.strike()
        if number % 2:
            entries: Any = act.site.client.xrange(stream, count=50)
            for entry, _ in act.rng.sample(entries, len(entries) // 2):
                act.site.client.xdel(stream, entry)
        else:
            act.site.client.xtrim(stream, maxlen=0, approximate=False)
        await act.pause(1.0, 2.0)


async def operator_flushes(act: Act) -> None:
    for _ in range(act.rounds):
        act.strike()
        act.site.client.flushdb()
        await act.pause(2.0, 3.0)


async def overload(act: Act) -> None:
    """Add three times as many clients for a while, then go back to a load with room for all."""
    normal = await _waits([act.load.stories], 20 if act.long else 3)
    more = Load(act.site, seed=act.rng.getrandbits(30), clients=3 * ROOMY_CLIENTS, tokens=100 if act.long else 50)
    more.start()
    act.strike()
    await asyncio.sleep(120 if act.long else 4)
    await more.ended()
    await asyncio.sleep(40 if act.long else 1.5)
    after = await _waits([act.load.stories], 20 if act.long else 3)
    act.ratios["p99 TTFT after overload"] = after / normal
    act.load.stories += more.stories


async def flood(act: Act) -> None:
    """Let five tenants keep all places busy, then let one of them send eight times as much."""
    rng = act.rng
    fair = [
        Load(act.site, seed=rng.getrandbits(30), clients=16, tokens=40, ways={Way.PLAIN: 1}, tenant=f"tenant-{n}")
        for n in range(5)
    ]
    for load in fair:
        load.start()
    await asyncio.sleep(2)
    others = [load.stories for load in fair[:4]]
    seconds = 60 if act.long else 4
    before = await _waits(others, seconds)
    more = Load(act.site, seed=rng.getrandbits(30), clients=112, tokens=40, ways={Way.PLAIN: 1}, tenant="tenant-4")
    more.start()
    act.strike()
    await asyncio.sleep(2)
    during = await _waits(others, seconds)
    act.ratios["p99 TTFT of others in a flood"] = during / before
    await asyncio.gather(*[load.ended() for load in [*fair, more]])
    for load in [*fair, more]:
        act.load.stories += load.stories


async def _waits(lists: list[list[Story]], seconds: float) -> float:
    """Measure the 99th percentile of the TTFT of the requests that begin in the next `seconds`."""
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    begun = [story for each in lists for story in each if story.began > begin and story.way is not Way.WHOLE]
    await asyncio.gather(*[story.heard.wait() for story in begun])
    return percentile([story.waited for story in begun if story.waited], 0.99)


async def recomputing(act: Act) -> None:
    """Count the tokens that were computed but are in no log, under six kills and stops a minute; no client leaves."""
    act.site.count_tokens(begin=True)
    counted = Load(act.site, seed=act.rng.getrandbits(30), clients=40, tokens=300 if act.long else 200, ways=STAYING)
    counted.start()
    act.load.stories = counted.stories
    await asyncio.sleep(1.5)
    for number in range(act.rounds):
        act.strike()
        act.victim().send((signal.SIGKILL, signal.SIGTERM)[number % 2])
        await asyncio.sleep(10 if act.long else 3)
    await counted.ended()
    logged = sum(story.tokens * story.n for story in counted.stories if story.complete)
    act.ratios["tokens computed for each that is kept"] = act.site.count_tokens() / max(logged, 1)


async def duplicates(act: Act) -> None:
    async def pair() -> None:
        story = act.load.story(Way.RETRY)
        twin = act.load.story(Way.RETRY, name=story.name, content=story.content, tokens=story.tokens, n=story.n)
        first = act.load.add(story)
        await act.pause(0.0, 0.5)
        await asyncio.wait([first, act.load.add(twin)])
        if story.job_ids != twin.job_ids:
            twin.wrongs.append("two jobs for one key")

    for _ in range(act.rounds):
        act.strike()
        await asyncio.gather(*[pair() for _ in range(10)])


async def cancels(act: Act) -> None:
    for _ in range(act.rounds * 10):
        tokens = act.rng.randint(5, 40)
        after = max(1, tokens - act.rng.randint(0, 3))
        told = [act.load.add(act.load.story(Way.CANCEL, tokens=tokens, n=1, leave_after=after)) for _ in range(3)]
        act.strike()
        await asyncio.wait(told)
