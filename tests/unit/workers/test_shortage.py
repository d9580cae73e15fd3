"""Steps that run out of memory: the guilty sequence is found in a bounded number of them, and all others advance."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import Delivery
from tests.factories import make_job
from workers.engines.scripted import ScriptedEngine
from workers.process.single_thread import SingleThread
from workers.protocols import OutOfMemory
from workers.runners.engine_loop import EngineLoop
from workers.runners.outbox import Outbox
from workers.runs.generation import Generation
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled, Sequence


class SmallEngine(ScriptedEngine):
    """An engine that holds each sequence it has computed until it is freed, and has no memory for more than `fits`."""

    def __init__(self, limits: EngineLimits, fits: int) -> None:
        super().__init__(limits=limits, step_ms=0, tokens=10**6)
        self.fits = fits
        self.held: set[Sequence] = set()
        self.rows: list[int] = []  # the number of rows in each step
        self.failed: list[bool] = []

    def step(self, batch: Batch) -> list[Sampled]:
        self.rows.append(len(batch.rows))
        self.failed.append(True)
        self.held |= {row.sequence for row in batch.rows}
        if len(self.held) > self.fits:
            raise OutOfMemory("too many")
        sampled = super().step(batch)
        self.failed[-1] = False
        return sampled

    def free(self, sequence: Sequence) -> None:
        self.held.discard(sequence)


class Stack:
    """An engine loop whose thread is the test's, and the number of steps that each job has waited for a token."""

    def __init__(self, *, fits: int = 10**6, **limits: Any) -> None:
        given = {"batch_tokens_max": 512, "context_length": 2000, "vocabulary": 50_000} | limits
        self.engine = SmallEngine(EngineLimits(**given), fits)
        thread = SingleThread("never used")
        thread.may_wait = False
        self.wakes = 0
        self.engine_loop = EngineLoop(
            "m",
            self.engine,
            thread,
            outbox=Outbox(asyncio.get_running_loop(), steps_max=10**6),
            metrics=WorkerMetrics(),
            more_places=self._wake,
        )
        self.jobs: list[Generation] = []
        self.waits: list[int] = []  # the longest wait of each job
        self._waiting: list[int] = []

    def _wake(self) -> None:
        self.wakes += 1

    def add(self, prompt: str, *, n: int = 1, tokens: int = 30) -> Generation:
        job = make_job(prompt=prompt, n=n, max_tokens=tokens, temperature=0)
        run = Generation(Delivery(job=job, claim_token="e", attempt=1), self.engine)
        self.engine_loop.add(run)
        self.jobs.append(run)
        self.waits.append(0)
        self._waiting.append(0)
        return run

    def step(self) -> None:
        before = [run.next_seq for run in self.jobs]
        self.engine_loop._iterate()
        for at, run in enumerate(self.jobs):
            got_on = run.ended or run.next_seq > before[at]
            self._waiting[at] = 0 if got_on else self._waiting[at] + 1
            self.waits[at] = max(self.waits[at], self._waiting[at])

    def until(self, truth: Callable[[], bool], *, steps: int) -> None:
        for _ in range(steps):
            if truth():
                return
            self.step()
        assert truth(), f"not within {steps} steps; the longest waits: {self.waits}"

    def end(self, *, steps: int = 10_000) -> None:
        self.until(lambda: all(run.ended for run in self.jobs), steps=steps)


def failed(run: Generation) -> bool:
    return run.ended and not run.done


def bound(sequences: int) -> int:
    """The number of steps until one of so many is found that does not fit alone, including the first that failed."""
    return 2 * math.ceil(math.log2(sequences)) + 1


@pytest.mark.parametrize("token", [0, 7])
@pytest.mark.parametrize("jobs", [1, 2, 3, 7, 16, 64])
async def test_one_that_has_no_memory_even_alone_is_found_in_logarithmically_many_steps(jobs: int, token: int) -> None:
    for guilty in {0, jobs // 3, jobs // 2, jobs - 1}:
        stack = Stack(sequences_max=jobs, batch_tokens_max=2048)
        for number in range(jobs):
            stack.add(f"question {number}" + (f" fault:oom@{token}" if number == guilty else ""))
        stack.until(lambda stack=stack: stack.engine.failed[-1:] == [True], steps=20)  # type: ignore[misc]
        before = len(stack.engine.rows)
        stack.until(lambda run=stack.jobs[guilty]: failed(run), steps=bound(jobs) - 1)  # type: ignore[misc]
        assert sum(stack.engine.failed[before - 1 :]) <= math.ceil(math.log2(jobs)) + 1
        stack.end()

        assert [failed(run) for run in stack.jobs] == [number == guilty for number in range(jobs)]
        assert max(stack.waits) <= bound(jobs)
        assert sum(stack.engine.failed) <= math.ceil(math.log2(jobs)) + 1


@pytest.mark.parametrize("first", range(8))
@pytest.mark.parametrize("second", range(8))
async def test_two_of_them_are_found_one_after_the_other_while_all_others_get_on(first: int, second: int) -> None:
    stack = Stack(sequences_max=8)
    for number in range(8):
        stack.add(f"question {number}" + (" fault:oom@5" if number in (first, second) else ""))
    guilty = {first, second}
    stack.end()

    assert [failed(run) for run in stack.jobs] == [number in guilty for number in range(8)]
    assert max(stack.waits) <= len(guilty) * bound(8)


async def test_more_jobs_than_places_and_many_choices_hide_none_of_them() -> None:
    """Twelve jobs of one to four choices share eight places; three jobs run out of memory, at several tokens."""
    stack = Stack(sequences_max=8)
    faults = {2: " fault:oom@3", 5: " fault:oom@0", 9: " fault:oom@8"}
    for number in range(12):
        stack.add(f"question {number}{faults.get(number, '')}", n=1 + number % 4, tokens=40)
    stack.end()

    assert [failed(run) for run in stack.jobs] == [number in faults for number in range(12)]
    assert sum(stack.engine.failed) <= len(faults) * (math.ceil(math.log2(8)) + 1)


async def test_newcomers_that_all_have_no_memory_do_not_silence_those_who_run() -> None:
    stack = Stack(sequences_max=8)
    for number in range(7):
        stack.add(f"question {number}", tokens=60)
    stack.until(lambda: all(run.next_seq > 2 for run in stack.jobs), steps=10)
    for number in range(20):
        guilty = stack.add(f"newcomer {number} fault:oom@{number % 3}")
        stack.until(lambda run=guilty: failed(run), steps=bound(8) + 3)  # type: ignore[misc]
    stack.end()

    assert max(stack.waits) <= bound(8)
    assert not any(failed(run) for run in stack.jobs[:7])


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8])
async def test_where_memory_is_short_for_a_full_batch_all_take_turns_and_none_fails(fits: int) -> None:
    """Each job gets a token in a number of steps that does not grow with the answers of others."""
    longest = {}
    for tokens in (40, 120):
        stack = Stack(sequences_max=12, fits=fits)
        for number in range(12):
            stack.add(f"question {number}", n=1 + number % 3, tokens=tokens)
        stack.end()
        assert not any(failed(run) for run in stack.jobs)
        longest[tokens] = max(stack.waits)

    assert longest[40] <= 12 * 24 // fits
    assert longest[120] <= 12 * 24 // fits


async def test_a_step_that_was_too_large_is_followed_by_half_of_it_which_grows_again() -> None:
    stack = Stack(sequences_max=16, fits=10)
    for number in range(16):
        stack.add(f"question {number}", tokens=200)
    for _ in range(40):
        stack.step()
    first = stack.engine.rows.index(16)
    assert stack.engine.rows[first : first + 6] == [16, 8, 8, 8, 9, 10]
    assert stack.engine.rows[first + 6] == 11
    assert stack.engine.failed[first : first + 7] == [True, False, False, False, False, False, True]

    stack.engine.fits = 16
    stack.until(lambda: stack.engine.rows[-1] == 16, steps=20)
    assert stack.engine_loop.places == 16


async def test_steps_have_their_size_again_as_soon_as_the_guilty_one_is_found() -> None:
    stack = Stack(sequences_max=16)
    for number in range(16):
        stack.add(f"question {number}" + (" fault:oom@4" if number == 11 else ""))
    stack.until(lambda: failed(stack.jobs[11]), steps=20)
    stack.step()

    assert stack.engine.rows[-1] == 15
    assert stack.engine_loop.places == 16


@pytest.mark.parametrize("words", [980, 992, 1025])
async def test_a_long_prompt_that_nothing_is_remembered_of_is_given_up_as_well(words: int) -> None:
    """Each failed attempt begins again at the first token, and smaller chunks do not help."""
    stack = Stack(sequences_max=4, batch_tokens_max=256, prefix_cache=False)
    beside = [stack.add(f"question {number}", tokens=20) for number in range(3)]
    guilty = stack.add("word " * words + "fault:oom@0")

    stack.until(lambda: failed(guilty), steps=2 * words // 16 + 20)
    stack.end()

    assert not any(map(failed, beside))


async def test_who_is_to_be_alone_fails_only_where_nobody_else_has_memory() -> None:
    stack = Stack(sequences_max=4, fits=2)
    for number in range(2):
        stack.add(f"question {number}")
    stack.until(lambda: all(run.next_seq > 2 for run in stack.jobs), steps=10)
    job = make_job(prompt="suspect", max_tokens=5)
    alone = Generation(Delivery(job=job, claim_token="e", attempt=3, isolated=True), stack.engine)
    stack.engine_loop.add(alone)

    stack.until(lambda: alone.ended, steps=100)
    stack.end()

    assert alone.done
    assert not any(map(failed, stack.jobs))


async def test_places_that_memory_has_taken_are_not_offered_and_come_back_with_word_of_it() -> None:
    stack = Stack(sequences_max=8, fits=4)
    for number in range(8):
        stack.add(f"question {number}", tokens=12)
    stack.until(lambda: True in stack.engine.failed, steps=5)
    stack.step()
    assert stack.engine_loop.places < 8
    assert stack.engine_loop.waiting

    stack.engine.fits = 8
    woken = stack.wakes
    stack.end()
    assert stack.engine_loop.places == 8
    assert stack.wakes > woken
