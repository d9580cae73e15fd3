"""The invariants, judged by what clients saw and by a dump of Redis alone."""

import itertools
import math
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.chaos.load import right_answer, wrong_texts
from bench.chaos.site import Site
from bench.chaos.story import Story, Way
from shared.domain.lifecycle import TERMINAL, State

# What may stay without a lifetime: the deployment's names, see shared/redis/keys.py.
LASTING = re.compile(
    r"rq:queues|rq:workers(:.*)?|penstock:(models|hosts|routes|default-model|keys|key:.*|keys:salt|files?:.*|files-expiring|webhooks:.*)|"
    r"rq:(failed|finished|canceled):.*"
)
RECORDS = ("log", "previous", "chat", "response")  # records kept for a job, by its id
DEADLINE_S = 65.0  # for one story: no fault lasts longer than half of this


@dataclass(slots=True)
class Verdict:
    """`violations` by invariant, `pauses` in seconds by kind of fault, and `ratios` by the name of their bar."""

    violations: dict[str, list[str]] = field(default_factory=dict)
    jobs: int = 0
    hit: int = 0
    tokens: int = 0
    stories: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    pauses: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def blame(self, invariant: str, found: Iterable[str]) -> None:
        for text in found:
            self.violations.setdefault(invariant, []).append(text)

    def add(self, other: "Verdict") -> None:
        for invariant, found in other.violations.items():
            self.blame(invariant, found)
        for kind, pauses in other.pauses.items():
            self.pauses.setdefault(kind, []).extend(pauses)
        self.ratios |= other.ratios
        for end, count in other.ends.items():
            self.ends[end] = self.ends.get(end, 0) + count
        self.jobs, self.hit = self.jobs + other.jobs, self.hit + other.hit
        self.tokens, self.stories = self.tokens + other.tokens, self.stories + other.stories


@dataclass(frozen=True, slots=True)
class Mercy:
    """The failures that a fault excuses. `lost`: Redis lost data, so jobs may be unknown or cut if clients learn it."""

    lost: bool = False
    failures: frozenset[str] = frozenset()


def judge(site: Site, stories: Sequence[Story], mercy: Mercy) -> Verdict:
    verdict = Verdict(stories=len(stories))
    jobs = dump(site)
    verdict.jobs = len(jobs)
    verdict.tokens = sum(len(story.times()) for story in stories if story.way is not Way.WHOLE)
    verdict.tokens += sum(story.tokens * story.n for story in stories if story.way is Way.WHOLE and story.complete)
    for story in stories:
        end = story.ends[-1] if story.ends else story.problem or "left"
        verdict.ends[end] = verdict.ends.get(end, 0) + 1
        verdict.blame("I1", _accepted_and_lost(story, jobs, mercy))
        verdict.blame("I1", (f"{story.name} ({story.job_id}): {wrong}" for wrong in story.wrongs))
        verdict.blame("I2", wrong_texts(story))
        verdict.blame("I3", _ended_badly(story))
        verdict.blame("I4", _ended_late(story, mercy))
    told = {job_id: story for story in stories for job_id in story.job_ids}
    for job_id, job in jobs.items():
        verdict.blame("I1", _not_terminal_once(job_id, job, mercy))
        verdict.blame("I8", _wrong_log(job_id, job, told.get(job_id)))
        if job.get("status") in set(map(str, TERMINAL)):
            verdict.blame("I6", (f"{key} of an ended job has no lifetime" for key in job["lasting"]))
        verdict.blame("I7", _badly_failed(job_id, job, jobs))
    if not mercy.lost:
        verdict.blame("I13", orphans(site, jobs))
    return verdict


def orphans(site: Site, jobs: Collection[str]) -> Iterator[str]:
    """List the records in Redis that belong to no job."""
    for record in RECORDS:
        for key in map(str, site.client.scan_iter(f"penstock:{record}:*", count=1000)):
            if key.removeprefix(f"penstock:{record}:") not in jobs:
                yield f"{key} is kept of no job"


def dump(site: Site) -> dict[str, dict[str, Any]]:
    """Read every job with its log."""
    client, found = site.client, {}
    for key in client.scan_iter("rq:job:*", count=1000):
        job_id = key.removeprefix("rq:job:")
        fields: Any = client.hgetall(key)
        rows: Any = client.lrange(f"penstock:log:{job_id}", 0, -1)
        fields["log"] = [orjson.loads(row) for row in rows]
        results: Any = client.xlen(f"rq:results:{job_id}")
        fields["results"] = results
        fields["lasting"] = [each for each in (key, f"penstock:log:{job_id}") if client.ttl(each) == -1]
        found[job_id] = fields
    return found


def leftovers(site: Site) -> Iterator[str]:
    """List violations of I6, some time after the last story."""
    client = site.client
    for model in site.models:
        for key in (f"penstock:leases:{model}", f"rq:wip:{model}", f"penstock:line:{model}", f"penstock:load:{model}"):
            if client.exists(key):
                yield f"{key} is left"
        if client.llen(f"rq:queue:{model}") or client.xlen(f"penstock:stream:{model}"):
            yield f"the queue of {model} is not empty"
    for pattern in ("penstock:lane:*", "penstock:claim:*", "penstock:suspect:*"):
        for key in client.scan_iter(pattern, count=1000):
            if client.ttl(key) == -1:  # -2: the key has expired meanwhile
                yield f"{key} is left"
    workers = list(client.scan_iter("rq:worker:*"))
    if len(workers) > site.workers_max:
        yield f"{len(workers)} workers are registered, {site.workers_max} run"
    for key in client.scan_iter("*", count=1000):
        if not LASTING.fullmatch(key) and client.ttl(key) == -1:
            yield f"{key} has no lifetime"


@dataclass(frozen=True, slots=True)
class Pause:
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def pause_across(story: Story, begin: float, end: float, again: float = math.inf) -> Pause | None:
    """Find the longest pause of a stream that begins between `begin` and `end`, or None if the stream did not run then.
    `again` is the time of the next hit: a pause that begins after it does not count."""
    times = story.times()
    if story.way is Way.WHOLE or len(times) < 2 or not times[0] < begin < times[-1]:
        return None
    gaps = [Pause(max(a, begin), b) for a, b in itertools.pairwise(times) if b > begin and a < min(end, again)]
    return max(gaps, key=lambda gap: min(gap.end, again) - gap.begin)


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _accepted_and_lost(story: Story, jobs: dict[str, Any], mercy: Mercy) -> Iterator[str]:
    for job_id in story.job_ids:
        if job_id not in jobs and not mercy.lost:
            yield f"{story.name}: accepted as {job_id}, which Redis does not know"


def _ended_badly(story: Story) -> Iterator[str]:
    if len(story.ends) > 1 or story.frames_after_end:
        told = f"{len(story.ends)} terminal events, {story.frames_after_end} frames after the end"
        yield f"{story.name} ({story.job_id}, {story.way}): {told}"
    if story.clean_nothing:
        yield f"{story.name}: a body ended cleanly without finish or error"


def _ended_late(story: Story, mercy: Mercy) -> Iterator[str]:
    if story.problem == "silence" or (story.ended and story.ended - story.began > DEADLINE_S):
        yield f"{story.name} ({story.job_id}, {story.way}): {story.ended - story.began:.0f} s, {story.problem}"
    elif story.complete and story.expects:
        yield f"{story.name} ({story.job_id}): completed, though it must fail"
    elif story.ends and story.ends[0] != "done":
        code = story.ends[0].removeprefix("error:")
        excused = code in mercy.failures | story.expects | story.excused or (mercy.lost and code == "job_lost")
        if not excused and not (story.way is Way.CANCEL and code == "cancelled"):
            yield f"{story.name} ({story.job_id}, {story.way}): failed with {code}"


def _not_terminal_once(job_id: str, job: dict[str, Any], mercy: Mercy) -> Iterator[str]:
    ended = [event for event in job["log"] if event[0] == "f"]
    if job.get("status") not in set(map(str, TERMINAL)):
        yield f"{job_id} is {job.get('status')}"
    elif (len(ended) != 1 or job["log"][-1][0] != "f") and not mercy.lost:
        yield f"{job_id} is {job['status']} with {len(ended)} ends in its log"


def _wrong_log(job_id: str, job: dict[str, Any], told: Story | None) -> Iterator[str]:
    """List the logs that are not the right answer, written once: only the owner may write."""
    if told is None:
        return
    expected = right_answer(told.content, told.tokens) if told.right is None else told.right
    texts = dict[int, str]()
    for event in job["log"]:
        if event[0] == "d":
            texts[event[1]] = texts.get(event[1], "") + event[2] + _called(event)
    for choice, text in texts.items():
        if not expected.startswith(text) or (job["status"] == State.FINISHED and text != expected):
            yield f"{job_id} choice {choice}: its log holds {len(text)} of {len(expected)} characters, or wrong ones"


def _called(delta: list[Any]) -> str:
    """Return the names and arguments in a delta's parts of tool calls: its last element, after the reasoning."""
    parts = delta[7] if len(delta) > 7 else ()
    return "".join(name + arguments for _, _, name, arguments in parts)


def _badly_failed(job_id: str, job: dict[str, Any], jobs: dict[str, Any]) -> Iterator[str]:
    if job.get("status") == State.FAILED and not job["results"]:
        yield f"{job_id} failed without a reason"
    if (origin := job.get("replay_of")) and jobs.get(origin, {}).get("replayed_as") != job_id:
        yield f"{job_id} replays {origin}, which does not know it"
