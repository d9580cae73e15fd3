"""The source runner, beyond what every runner does (tests/unit/workers/test_conformance.py)."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from penstock.driver import Attempt, Driver
from penstock.engines import (
    Busy,
    ChatRequest,
    ChatSource,
    EngineBroken,
    InvalidRequest,
    Piece,
)
from shared.domain.events import Completed, Embedded, Expired, Failed
from shared.domain.job import Job, Kind, Sampling
from tests.unit.workers.sources import Echo, Given
from workers.loading.loaded import Loaded
from workers.loading.model_spec import ModelSpec
from workers.loading.sourced import sourced
from workers.process.single_thread import SingleThread


class Drivers:
    """Makes drivers that end with the test."""

    def __init__(self) -> None:
        self.made: list[Driver] = []

    def __call__(self, source: ChatSource, *, sequences_max: int = 4, gather_s: float = 0.01) -> Driver:
        thread = SingleThread("source")
        spec = ModelSpec("m", "m", engine="x:Y")

        def load() -> Loaded:
            return sourced(spec, source, thread, kind="custom", sequences_max=sequences_max, gather_s=gather_s)

        self.made.append(Driver(thread.submit(load).result(10), seconds_max=10))
        return self.made[-1]


@pytest.fixture
def drive() -> Iterator[Drivers]:
    drivers = Drivers()
    yield drivers
    for driver in drivers.made:
        driver.close()


def ask(driver: Driver, prompt: str = "hello", **sampling: Any) -> Attempt:
    return driver.start(driver.chat(prompt, **sampling))


class Held(ChatSource):
    """Says one word, then waits until it is let go or closed. A plain one blocks its thread."""

    def __init__(self) -> None:
        super().__init__(None)
        self.begun: list[str] = []
        self.closed = threading.Event()
        self._may_end = asyncio.Event()

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._may_end.set)

    async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        self.begun.append(request.job_id)
        try:
            yield "begun"
            await self._may_end.wait()
            yield " and ended"
        finally:
            self.closed.set()


class PlainlyHeld(ChatSource):
    def __init__(self) -> None:
        super().__init__(None)
        self.begun = 0
        self.closed = threading.Event()
        self.let_go = threading.Event()

    def chat(self, request: ChatRequest) -> Iterator[Piece]:
        self.begun += 1
        try:
            yield "begun"
            self.let_go.wait(10)
            yield " and ended"
        finally:
            self.closed.set()


def test_a_plain_generator_answers_beside_others(drive: Drivers) -> None:
    source = PlainlyHeld()
    driver = drive(source)
    both = [ask(driver), ask(driver)]
    for attempt in both:
        attempt.wait(deltas=1)

    source.let_go.set()

    assert [attempt.wait().said() for attempt in both] == ["begun and ended"] * 2
    assert source.begun == 2


def test_a_source_is_closed_when_its_job_is_dropped(drive: Drivers) -> None:
    source = Held()
    driver = drive(source)
    attempt = ask(driver).wait(deltas=1)

    driver.runner.drop(attempt.run)

    assert source.closed.wait(5)
    assert driver.eventually(lambda: driver.running == 0)


def test_a_plain_generator_keeps_its_place_until_it_comes_back(drive: Drivers) -> None:
    source = PlainlyHeld()
    driver = drive(source, sequences_max=1)
    attempt = ask(driver).wait(deltas=1)

    driver.runner.drop(attempt.run)
    later = ask(driver)

    assert not source.closed.is_set()
    assert not later.events[1:]
    source.let_go.set()
    assert later.wait().said() == "begun and ended"


def test_a_source_that_has_said_its_stop_string_is_closed(drive: Drivers) -> None:
    source = Held()

    attempt = ask(drive(source), stop=["egun"]).wait()

    assert attempt.said() == "b"
    assert source.closed.wait(5)


def test_a_source_that_never_waits_can_be_stopped(drive: Drivers) -> None:
    class Endless(ChatSource):
        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            while True:
                yield "x"

    driver = drive(Endless(None))
    attempt = ask(driver).wait(deltas=10)

    driver.runner.end(attempt.run, Expired())

    assert attempt.outcome == Expired()
    assert driver.eventually(lambda: driver.running == 0)


def test_first_words_are_delivered_at_once_and_what_follows_is_gathered(drive: Drivers) -> None:
    source = Held()
    driver = drive(source, gather_s=60)
    both = [ask(driver), ask(driver)]
    for attempt in both:
        attempt.wait(deltas=1)

    source.let_go()

    assert driver.eventually(lambda: driver.running == 0)
    assert [attempt.said() for attempt in both] == ["begun", "begun"]
    driver.stop().result(10)
    assert [attempt.wait().said() for attempt in both] == ["begun and ended"] * 2


def test_a_source_that_blocks_the_loop_is_not_alive(drive: Drivers) -> None:
    blocked, free = threading.Event(), threading.Event()

    class Blocking(ChatSource):
        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            blocked.set()
            free.wait(10)
            yield "x"

    driver = drive(Blocking(None))
    assert driver.runner.alive(step_timeout_s=0.2)
    attempt = ask(driver)

    assert blocked.wait(5)
    assert driver.eventually(lambda: not driver.runner.alive(step_timeout_s=0.2))

    free.set()
    assert isinstance(attempt.outcome, Completed)
    assert driver.eventually(lambda: driver.runner.alive(step_timeout_s=0.2))


def test_a_broken_source_ends_the_runner() -> None:
    class Broken(ChatSource):
        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            yield "x"
            raise EngineBroken("the device is gone")

    drivers = Drivers()
    driver = drivers(Broken(None))
    ask(driver)

    assert driver.eventually(lambda: not driver.runner.alive(step_timeout_s=60))
    with pytest.raises(ExceptionGroup):
        driver.close()


def test_an_error_of_what_watches_the_source_ends_the_runner_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Watched(Given):
        async def watch(self) -> None:
            raise ConnectionError("the line is cut")

    drivers = Drivers()
    driver = drivers(Watched("x"))

    assert driver.eventually(lambda: not driver.runner.alive(step_timeout_s=60))
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectionError, match="the line is cut")):
        driver.close()
    assert "the source is lost" in caplog.text
    assert "the line is cut" in caplog.text


def test_a_failure_is_the_jobs_with_its_traceback(drive: Drivers) -> None:
    class Failing(ChatSource):
        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            yield "x"
            raise ValueError("no such thing")

    outcome = ask(drive(Failing(None)), n=2).outcome

    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.message) == ("engine_error", "The engine failed: no such thing")
    assert "in chat" in outcome.detail


def test_a_refusal_names_its_parameter(drive: Drivers) -> None:
    class Choosy(ChatSource):
        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            raise InvalidRequest("'messages' must be shorter.", param="messages")
            yield ""

    outcome = ask(drive(Choosy(None))).outcome

    assert outcome == Failed(code="invalid_request", message="'messages' must be shorter.", param="messages")


def test_what_is_no_piece_fails_the_job(drive: Drivers) -> None:
    outcome = ask(drive(Given(7))).outcome  # type: ignore[arg-type]

    assert isinstance(outcome, Failed)
    assert "int" in outcome.message


def test_a_coroutine_is_no_answer(drive: Drivers) -> None:
    class Awaited(ChatSource):
        async def chat(self, request: ChatRequest) -> str:  # type: ignore[override]
            return "x"

    outcome = ask(drive(Awaited(None))).outcome

    assert isinstance(outcome, Failed)
    assert "generator" in outcome.message


def test_a_busy_source_gives_the_job_back_and_has_no_place_for_a_while(drive: Drivers) -> None:
    class Sometimes(ChatSource):
        free = False

        async def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
            yield "x"
            if not self.free:
                raise Busy(retry_after_s=0.3)

    source = Sometimes(None)
    driver = drive(source)
    began = time.monotonic()

    attempt = ask(driver).wait_put_back()

    assert [type(event).__name__ for event in attempt.events] == ["Started", "Delta"]
    assert driver.runner.places == 0
    assert driver.more_places.wait(5)
    assert (driver.runner.places, time.monotonic() - began > 0.25) == (4, True)


def test_a_wide_job_gives_way_to_those_that_come_after(drive: Drivers) -> None:
    source = Held()
    driver = drive(source, sequences_max=2)
    wide = ask(driver, n=8).wait(deltas=2)

    later = ask(driver)
    assert driver.eventually(lambda: driver.runner.waiting == 1)
    source.let_go()

    assert isinstance(wide.outcome, Completed)
    assert later.delivery.job.id in source.begun[:4]
    assert driver.more_places.is_set()


def test_vectors_have_unit_length_and_those_logged_are_not_asked_for(drive: Drivers) -> None:
    driver = drive(Echo(None))
    request = {"inputs": ["four", "two"], "dimensions": None, "truncate": None}
    job = Job(
        id="embd-1",
        model="m",
        kind=Kind.EMBEDDING,
        request=request,
        sampling=Sampling(seed=0),
        created_ms=0,
        queue_deadline_ms=0,
        run_deadline_ms=0,
    )

    whole = driver.start(job).wait()
    again = driver.start(job, whole.events[:2]).wait()

    vectors = [event for event in whole.events if isinstance(event, Embedded)]
    assert [round(sum(x * x for x in vector.vector), 6) for vector in vectors] == [1, 1]
    assert [event.index for event in again.events if isinstance(event, Embedded)] == [1]
