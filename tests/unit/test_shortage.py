"""Steps that find no memory: whose fault it is comes out in a bounded number of them, and everybody else gets on."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from shared.queue import Delivery
from shared.telemetry import WorkerMetrics
from tests.factories import make_job
from workers.call_thread import CallThread
from workers.engine.base import OutOfMemory
from workers.engine.scripted import ScriptedEngine
from workers.generation import Generation
from workers.limits import Limits
from workers.outbox import Outbox
from workers.scheduler import Batch
from workers.sequence import Sampled, Sequence
from workers.stepper import Stepper


class SmallEngine(ScriptedEngine):
    """Remembers each sequence that it has computed until it is freed, and finds no memory for more than `fits`."""

    def __init__(self, limits: Limits, fits: int) -> None:
        super().__init__(limits=limits, step_ms=0, tokens=10**6)
        self.fits = fits
        self.held: set[Sequence] = set()
        self.rows: list[int] = []  # of each step
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


class House:
    """A stepper whose thread is the test's, and how many steps each job has waited for a token."""

    def __init__(self, *, fits: int = 10**6, **limits: Any) -> None:
        given = {"batch_tokens_max": 512, "context_length": 2000, "vocabulary": 50_000} | limits
        self.engine = SmallEngine(Limits(**given), fits)
        thread = CallThread("never used")
        thread.may_wait = False
        self.wakes = 0
        self.stepper = Stepper(
            "m",
            self.engine,
            thread,
            outbox=Outbox(asyncio.get_running_loop(), steps_max=10**6),
            metrics=WorkerMetrics(),
            room=self._wake,
        )
        self.jobs: list[Generation] = []
        self.waits: list[int] = []  # the longest of each job
        self._waiting: list[int] = []

    def _wake(self) -> None:
        self.wakes += 1

    def add(self, prompt: str, *, n: int = 1, tokens: int = 30) -> Generation:
        job = make_job(prompt=prompt, n=n, max_tokens=tokens, temperature=0)
        turn = Generation(Delivery(job=job, exec="e", attempt=1), self.engine)
        self.stepper.add(turn)
        self.jobs.append(turn)
        self.waits.append(0)
        self._waiting.append(0)
        return turn

    def step(self) -> None:
        before = [turn.next_seq for turn in self.jobs]
        self.stepper._go_on()
        for at, turn in enumerate(self.jobs):
            got_on = turn.ended or turn.next_seq > before[at]
            self._waiting[at] = 0 if got_on else self._waiting[at] + 1
            self.waits[at] = max(self.waits[at], self._waiting[at])

    def until(self, truth: Callable[[], bool], *, steps: int) -> None:
        for _ in range(steps):
            if truth():
                return
            self.step()
        assert truth(), f"not within {steps} steps; the longest waits: {self.waits}"

    def end(self, *, steps: int = 10_000) -> None:
        self.until(lambda: all(turn.ended for turn in self.jobs), steps=steps)


def failed(turn: Generation) -> bool:
    return turn.ended and not turn.done


def bound(sequences: int) -> int:
    """Steps until one of so many is found that has no memory alone, the first one that failed among them."""
    return 2 * math.ceil(math.log2(sequences)) + 1


@pytest.mark.parametrize("token", [0, 7])
@pytest.mark.parametrize("jobs", [1, 2, 3, 7, 16, 64])
async def test_one_that_has_no_memory_even_alone_is_found_in_logarithmically_many_steps(jobs: int, token: int) -> None:
    for guilty in {0, jobs // 3, jobs // 2, jobs - 1}:
        house = House(sequences_max=jobs, batch_tokens_max=2048)
        for number in range(jobs):
            house.add(f"question {number}" + (f" fault:oom@{token}" if number == guilty else ""))
        house.until(lambda house=house: house.engine.failed[-1:] == [True], steps=20)  # type: ignore[misc]
        before = len(house.engine.rows)
        house.until(lambda turn=house.jobs[guilty]: failed(turn), steps=bound(jobs) - 1)  # type: ignore[misc]
        assert sum(house.engine.failed[before - 1 :]) <= math.ceil(math.log2(jobs)) + 1
        house.end()

        assert [failed(turn) for turn in house.jobs] == [number == guilty for number in range(jobs)]
        assert max(house.waits) <= bound(jobs)
        assert sum(house.engine.failed) <= math.ceil(math.log2(jobs)) + 1


@pytest.mark.parametrize("first", range(8))
@pytest.mark.parametrize("second", range(8))
async def test_two_of_them_are_found_one_after_the_other_while_all_others_get_on(first: int, second: int) -> None:
    house = House(sequences_max=8)
    for number in range(8):
        house.add(f"question {number}" + (" fault:oom@5" if number in (first, second) else ""))
    guilty = {first, second}
    house.end()

    assert [failed(turn) for turn in house.jobs] == [number in guilty for number in range(8)]
    assert max(house.waits) <= len(guilty) * bound(8)


async def test_more_jobs_than_places_and_many_choices_hide_none_of_them() -> None:
    """Twelve jobs of one to four choices for eight places; three jobs have no memory, at several tokens."""
    house = House(sequences_max=8)
    faults = {2: " fault:oom@3", 5: " fault:oom@0", 9: " fault:oom@8"}
    for number in range(12):
        house.add(f"question {number}{faults.get(number, '')}", n=1 + number % 4, tokens=40)
    house.end()

    assert [failed(turn) for turn in house.jobs] == [number in faults for number in range(12)]
    assert sum(house.engine.failed) <= len(faults) * (math.ceil(math.log2(8)) + 1)


async def test_newcomers_that_all_have_no_memory_do_not_silence_those_who_run() -> None:
    house = House(sequences_max=8)
    for number in range(7):
        house.add(f"question {number}", tokens=60)
    house.until(lambda: all(turn.next_seq > 2 for turn in house.jobs), steps=10)
    for number in range(20):
        guilty = house.add(f"newcomer {number} fault:oom@{number % 3}")
        house.until(lambda turn=guilty: failed(turn), steps=bound(8) + 3)  # type: ignore[misc]
    house.end()

    assert max(house.waits) <= bound(8)
    assert not any(failed(turn) for turn in house.jobs[:7])


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8])
async def test_where_memory_is_short_for_a_full_batch_all_take_turns_and_none_fails(fits: int) -> None:
    """Each gets a token in a number of steps that does not grow with the answers of others."""
    longest = {}
    for tokens in (40, 120):
        house = House(sequences_max=12, fits=fits)
        for number in range(12):
            house.add(f"question {number}", n=1 + number % 3, tokens=tokens)
        house.end()
        assert not any(failed(turn) for turn in house.jobs)
        longest[tokens] = max(house.waits)

    assert longest[40] <= 12 * 24 // fits
    assert longest[120] <= 12 * 24 // fits


async def test_a_step_that_was_too_large_is_followed_by_half_of_it_which_grows_again() -> None:
    house = House(sequences_max=16, fits=10)
    for number in range(16):
        house.add(f"question {number}", tokens=200)
    for _ in range(40):
        house.step()
    first = house.engine.rows.index(16)
    assert house.engine.rows[first : first + 6] == [16, 8, 8, 8, 9, 10]
    assert house.engine.rows[first + 6] == 11
    assert house.engine.failed[first : first + 7] == [True, False, False, False, False, False, True]

    house.engine.fits = 16
    house.until(lambda: house.engine.rows[-1] == 16, steps=20)
    assert house.stepper.places == 16


async def test_steps_have_their_size_again_as_soon_as_the_guilty_one_is_found() -> None:
    house = House(sequences_max=16)
    for number in range(16):
        house.add(f"question {number}" + (" fault:oom@4" if number == 11 else ""))
    house.until(lambda: failed(house.jobs[11]), steps=20)
    house.step()

    assert house.engine.rows[-1] == 15
    assert house.stepper.places == 16


@pytest.mark.parametrize("words", [980, 992, 1025])
async def test_a_long_prompt_that_nothing_is_remembered_of_is_given_up_as_well(words: int) -> None:
    """Each failed attempt begins at its first token again, and smaller parts do not help."""
    house = House(sequences_max=4, batch_tokens_max=256, prefix_cache=False)
    beside = [house.add(f"question {number}", tokens=20) for number in range(3)]
    guilty = house.add("word " * words + "fault:oom@0")

    house.until(lambda: failed(guilty), steps=2 * words // 16 + 20)
    house.end()

    assert not any(map(failed, beside))


async def test_who_is_to_be_alone_fails_only_where_nobody_else_has_memory() -> None:
    house = House(sequences_max=4, fits=2)
    for number in range(2):
        house.add(f"question {number}")
    house.until(lambda: all(turn.next_seq > 2 for turn in house.jobs), steps=10)
    job = make_job(prompt="suspect", max_tokens=5)
    alone = Generation(Delivery(job=job, exec="e", attempt=3, alone=True), house.engine)
    house.stepper.add(alone)

    house.until(lambda: alone.ended, steps=100)
    house.end()

    assert alone.done
    assert not any(map(failed, house.jobs))


async def test_places_that_memory_has_taken_are_not_offered_and_come_back_with_word_of_it() -> None:
    house = House(sequences_max=8, fits=4)
    for number in range(8):
        house.add(f"question {number}", tokens=12)
    house.until(lambda: True in house.engine.failed, steps=5)
    house.step()
    assert house.stepper.places < 8
    assert house.stepper.waiting

    house.engine.fits = 8
    woken = house.wakes
    house.end()
    assert house.stepper.places == 8
    assert house.wakes > woken
