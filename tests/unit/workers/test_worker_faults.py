"""Faults in a worker cost only the jobs concerned: a failed step, a failed engine, an unreadable answer, a lost log."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from shared.domain.events import Completed, Failed, Finished, FinishReason
from shared.domain.job import Grammar
from shared.domain.lifecycle import State
from shared.queue.memory_queue import MemoryQueue
from tests.factories import make_job
from tests.running_workers import eventually, heard, held_job, log_of, make_worker, outcome_of, submit, text_of, working
from workers.engines.scripted import ScriptedEngine, ScriptedTokenizer
from workers.parsers.output_parser import ParsedDelta, PlainParser
from workers.protocols import EngineBroken
from workers.runners.engine_loop import EngineLoop
from workers.scheduling.scheduler import Batch, Scheduler
from workers.scheduling.sequence import Sampled
from workers.text.tokenizer import Chat


@pytest.mark.parametrize("fault", ["raise", "oom"])
@pytest.mark.parametrize("position", [0, 7])
async def test_a_step_that_fails_ends_the_guilty_job_and_no_other(
    queue: MemoryQueue, fault: str, position: int
) -> None:
    undisturbed = await submit(queue, make_job(max_tokens=15))
    async with working(make_worker(queue)):
        await heard(queue, undisturbed)
        bad = make_job(prompt=f"fault:{fault}@{position}")
        beside = [make_job(max_tokens=15) for _ in range(3)]
        for job in (*beside[:1], bad, *beside[1:]):
            await submit(queue, job)
        outcome = await outcome_of(queue, bad)
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in beside])

    assert isinstance(outcome, Failed)
    assert outcome.code == "engine_error"
    assert "asked for this fault" in outcome.message
    for job in beside:
        assert text_of(await log_of(queue, job)) == text_of(await log_of(queue, undisturbed))


async def test_a_broken_engine_ends_the_worker(queue: MemoryQueue) -> None:
    class Broken(ScriptedEngine):
        def step(self, batch: Batch) -> list[Sampled]:
            raise EngineBroken("the device has fallen off the bus")

    job = await submit(queue, make_job())
    worker = make_worker(queue, engine=Broken)

    with pytest.RaisesGroup(pytest.RaisesExc(EngineBroken, match="ended")):
        await asyncio.wait_for(worker.run(), 5)

    (page,) = await queue.read([(job.id, 0)])
    assert page.state is State.STARTED
    assert not worker.alive


async def test_steps_that_get_nowhere_end_the_worker(queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "next_batch", lambda _: Batch(()))
    job = await submit(queue, make_job())
    worker = make_worker(queue, step_ms=1, step_timeout_s=0.3)

    with pytest.RaisesGroup(pytest.RaisesExc(EngineBroken, match="hangs")):
        await asyncio.wait_for(worker.run(), 5)

    assert not worker.alive
    (page,) = await queue.read([(job.id, 0)])
    assert page.state is State.STARTED


class Unreadable(ScriptedEngine):
    """An engine whose tokenizer raises at the third token of certain prompts; their steps are fine."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.tokenizer = UnreadableTokenizer()


class UnreadableTokenizer(ScriptedTokenizer):
    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        chat = super().chat(request, wanted)
        return replace(
            chat, make_parser=lambda seed: BadReply() if "bad" in request["messages"][0]["content"] else PlainParser()
        )


class BadReply(PlainParser):
    read = 0

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        self.read += 1
        if self.read == 3:
            raise RecursionError("nested too deep")
        return super().push(text, reason)


async def test_an_answer_that_cannot_be_read_fails_its_own_job_and_no_other(queue: MemoryQueue) -> None:
    undisturbed = await submit(queue, make_job(prompt="good", max_tokens=12))
    bad = await submit(queue, make_job(prompt="bad", n=2, max_tokens=12))
    beside = await submit(queue, make_job(prompt="good", max_tokens=12))

    async with working(make_worker(queue, step_ms=5, engine=Unreadable)) as worker:
        outcome = await outcome_of(queue, bad)
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in (undisturbed, beside)])
        assert worker.alive

    assert isinstance(outcome, Failed)
    assert (outcome.code, "nested too deep" in outcome.message) == ("engine_error", True)
    assert sum(isinstance(event, Finished) for event in await log_of(queue, bad)) == 1
    assert text_of(await log_of(queue, beside)) == text_of(await log_of(queue, undisturbed))


async def test_an_answer_that_cannot_be_read_behind_its_echo_fails_all_the_same(queue: MemoryQueue) -> None:
    """The echo then has an event number, but is not written."""

    class BadFirst(ScriptedTokenizer):
        def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
            if len(ids) == 1:
                raise ValueError("no such token")
            return super().decode(ids)

    class Engine(ScriptedEngine):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.tokenizer = BadFirst()

    asked = {"prompts": ["a b"], "echo": True, "prompt_logprobs": 1}
    bad = await submit(queue, make_job(completion=asked, logprobs=1, max_tokens=3))

    async with working(make_worker(queue, engine=Engine)):
        outcome = await outcome_of(queue, bad)

    assert isinstance(outcome, Failed)
    assert [event.seq for event in await log_of(queue, bad)] == [0, 1]


async def test_a_log_with_a_gap_that_nobody_can_fill_ends_its_job(queue: MemoryQueue) -> None:
    job, other = await submit(queue, make_job(max_tokens=15)), make_job(max_tokens=3)
    async with working(make_worker(queue, step_ms=10)) as worker:
        await heard(queue, job, seq=6)
        held_job(worker, job).log.clear()
        del queue._records[job.id].log[3:]
        outcome = await outcome_of(queue, job)
        await submit(queue, other)
        assert isinstance(await outcome_of(queue, other), Completed)

    assert isinstance(outcome, Failed)
    assert outcome.code == "internal_error"
    log = await log_of(queue, job)
    assert [event.seq for event in log] == [0, 1, 2, 3]


async def test_an_answer_that_takes_for_ever_to_read_fails_its_own_job(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*_: Any) -> ParsedDelta:
        while True:
            pass

    monkeypatch.setattr("workers.runs.run.READ_S_MAX", 0.2)
    monkeypatch.setattr(BadReply, "push", forever)
    bad = await submit(queue, make_job(prompt="bad", max_tokens=12))
    beside = await submit(queue, make_job(prompt="good", max_tokens=12))

    async with working(make_worker(queue, engine=Unreadable)):
        assert isinstance(await outcome_of(queue, bad), Failed)
        assert isinstance(await outcome_of(queue, beside), Completed)


async def test_a_job_that_fails_while_its_deadline_passes_ends_once(queue: MemoryQueue) -> None:
    """Nothing is written meanwhile, so both ends would be in flight together."""
    answers = asyncio.Event()
    append, settle = queue.append, queue.settle

    class Away(MemoryQueue):
        async def append(self, writes: Any) -> Any:
            await answers.wait()
            return await append(writes)

        async def settle(self, write: Any, *, worker: str) -> Any:
            await answers.wait()
            return await settle(write, worker=worker)

    queue.__class__ = Away
    job = await submit(queue, make_job(prompt="fault:raise@2", run_deadline_ms=300, max_tokens=50))
    async with working(make_worker(queue, step_ms=30)) as worker:
        await eventually(lambda: (held := worker._held.by_id(job.id)) and held._deadline)
        timer, (engine_loop,) = held_job(worker, job)._deadline, worker._runners
        assert timer
        assert isinstance(engine_loop, EngineLoop)
        await eventually(lambda: timer.when() < asyncio.get_running_loop().time())
        passed = threading.Event()
        engine_loop._inbox.put(passed.set)
        await asyncio.to_thread(passed.wait)  # also after the engine's thread
        answers.set()
        assert isinstance(await outcome_of(queue, job), Failed)

    assert sum(isinstance(event, Finished) for event in await log_of(queue, job)) == 1


async def test_nobody_waits_for_the_prompt_of_another_to_be_encoded(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = threading.Event()
    encode = ScriptedTokenizer.encode_text

    def slow(self: ScriptedTokenizer, text: str, *given: Any, **options: Any) -> list[int]:
        if "slow" in text:
            encoded.wait(20)
        return encode(self, text, *given, **options)

    monkeypatch.setattr(ScriptedTokenizer, "encode_text", slow)
    first = await submit(queue, make_job(prompt="slow", max_tokens=3))
    others = [await submit(queue, make_job(max_tokens=3)) for _ in range(3)]

    async with working(make_worker(queue)):
        assert all([isinstance(await outcome_of(queue, job), Completed) for job in others])
        encoded.set()
        assert isinstance(await outcome_of(queue, first), Completed)


async def test_a_prompt_that_takes_too_long_to_encode_is_refused(
    queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*_: Any, **__: Any) -> list[int]:
        while True:
            pass

    monkeypatch.setattr("workers.runs.begin.ENCODE_S_MAX", 0.2)
    monkeypatch.setattr(ScriptedTokenizer, "encode_text", forever)
    job = await submit(queue, make_job())

    async with working(make_worker(queue)):
        outcome = await outcome_of(queue, job)

    assert isinstance(outcome, Failed)
    assert (outcome.code, "0.2 s to encode" in outcome.message) == ("invalid_request", True)


async def test_a_worker_restores_the_end_of_a_log_that_the_queue_lost(queue: MemoryQueue) -> None:
    undisturbed = await submit(queue, make_job(max_tokens=15))
    job = make_job(max_tokens=15)
    async with working(make_worker(queue, step_ms=5)):
        await outcome_of(queue, undisturbed)
        await submit(queue, job)
        await heard(queue, job, seq=8)
        del queue._records[job.id].log[3:]
        assert isinstance(await outcome_of(queue, job), Completed)

    log = await log_of(queue, job)
    assert [event.seq for event in log] == list(range(len(log)))
    assert text_of(log) == text_of(await log_of(queue, undisturbed))
