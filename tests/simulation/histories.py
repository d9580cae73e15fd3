"""Checks the invariants at the end of every history."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from shared.domain.events import Cancelled, Completed, Delta, Expired, Failed, Finished, Outcome, Started
from shared.domain.job import Job
from shared.domain.lifecycle import State
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import Client, World
from workers.engines.scripted import FAULT, ScriptedTokenizer, scripted_token
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.sequence import SamplingParams, Sequence

STATES = {Completed: State.FINISHED, Cancelled: State.CANCELED, Failed: State.FAILED, Expired: State.FAILED}
GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)


def run(seed: int) -> list[str]:
    """Run the history of a seed; return its faults."""
    return simulated(functools.partial(_one_history, seed))  # type: ignore[no-any-return]


def simulated(work: Callable[[], Any]) -> Any:
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


async def _one_history(seed: int) -> list[str]:
    world = World(seed)
    try:
        await world.live()
        return list(_wrongs(world))
    except TimeoutError:
        return [*world.wrongs, "not every client has got an answer"]
    finally:
        await world.end()


def _wrongs(world: World) -> Iterator[str]:
    yield from world.wrongs
    for client in world.clients:
        for found in (_misread(world, client), _misended(world, client), _misanswered(client), _shared(world, client)):
            yield from (f"{client.job.id}: {wrong}" for wrong in found)


def _misread(world: World, client: Client) -> Iterator[str]:
    """Check that the log and the client have every event once, in order, and one end, which is last."""
    log = world.queue._records[client.job.id].log
    for whose, events in (("the log", log), ("the client", client.events)):
        if [event.seq for event in events] != list(range(len(events))):
            yield f"{whose} has events {[event.seq for event in events]}"
        if [isinstance(event, Finished) for event in events].count(True) != 1 or not isinstance(events[-1], Finished):
            ends = [type(event.outcome).__name__ for event in events if isinstance(event, Finished)]
            yield f"{whose} has the ends {ends}"
    if not isinstance(client.events[0], Started | Finished):
        yield f"it begins with {client.events[0]}"
    if client.events != log and not _expired_by_relay(world, client):
        yield "the client has read what the log does not hold"


def _expired_by_relay(world: World, client: Client) -> bool:
    """Recognise a deadline that passed without a worker: the API process reports it and cancels the job."""
    log = world.queue._records[client.job.id].log
    said = client.events[:-1]
    return isinstance(client.outcome, Expired) and log[: len(said)] == said


def _misended(world: World, client: Client) -> Iterator[str]:
    job, record = client.job, world.queue._records[client.job.id]
    last = record.log[-1]
    logged = last.outcome if isinstance(last, Finished) else None
    if record.state is not STATES.get(type(logged)):
        yield f"it is {record.state} with {logged}"
    if not _right_to_end(world, job, client.outcome):
        yield f"it ended with {client.outcome}"


def _right_to_end(world: World, job: Job, outcome: Outcome) -> bool:
    record = world.queue._records[job.id]
    match outcome:
        case Completed():
            return not FAULT.search(job.request["messages"][0]["content"])
        case Cancelled():
            return job.id in world.cancelled
        case Failed(code="poison"):
            return record.attempt > world.queue._attempts_max
        case Failed():
            return outcome.code == "engine_error" and bool(FAULT.search(job.request["messages"][0]["content"]))
        case Expired():
            return record.deadline_ms is not None


def _misanswered(client: Client) -> Iterator[str]:
    job = client.job
    right = answer(job.request["messages"][0]["content"], job.sampling.max_tokens or 0)
    for choice in range(job.sampling.n):
        deltas = [event for event in client.events if isinstance(event, Delta) and event.choice == choice]
        said = [token for event in deltas for token in event.token_ids]
        if said != right[: len(said)]:
            yield f"choice {choice} says {said} instead of {right}"
        if len(said) != len(right) and isinstance(client.outcome, Completed):
            yield f"choice {choice} is complete with {len(said)} of {len(right)} tokens"


def _shared(world: World, client: Client) -> Iterator[str]:
    """Check that no tenant finds another tenant's prompt in the prefix cache."""
    if not isinstance(client.outcome, Completed):
        return
    own = _prompt(client.job)
    asked = [other.job for other in world.clients if other.job.tenant == client.job.tenant]
    if world.claims[client.job.id] == 1:
        asked.remove(client.job)
    known = max((_alike(own, _prompt(job)) for job in asked), default=0)
    if client.outcome.usage.cached_tokens > known:
        yield f"{client.outcome.usage.cached_tokens} tokens came from the cache; its tenant had asked for {known}"


def _alike(one: list[int], other: list[int]) -> int:
    """Count the equal tokens at the beginnings, in whole blocks; if all are equal, count all, since the answers are
    equal as well."""
    if one == other:
        return len(one)
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same // BLOCK_SIZE * BLOCK_SIZE


def _prompt(job: Job) -> list[int]:
    return _encoded(job.request["messages"][0]["content"])


@functools.cache
def _encoded(content: str) -> list[int]:
    return ScriptedTokenizer().chat({"messages": [{"role": "user", "content": content}]}).ids


@functools.cache
def answer(content: str, tokens: int) -> list[int]:
    sequence = Sequence(job_id="", choice=0, prompt=_encoded(content), sampling=GREEDY)
    return [scripted_token(sequence, position) for position in range(tokens)]
