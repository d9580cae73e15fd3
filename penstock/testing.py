"""The conformance suite of runners: what a worker relies on, whoever computes. It needs pytest.

Make a test class of it for an engine of your own:

    from penstock.testing import RunnerConformance

    class TestEcho(RunnerConformance):
        engine = "mypackage.bots:Echo"
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from penstock.driver import Attempt, Driver
from shared.domain.events import Completed, Deadline, Expired, Failed, Finished, Started
from shared.settings import Settings, load_settings
from workers.loading.loaded import Loaded, load
from workers.loading.model_spec import parse_specs

PROMPT = "Tell me of the river that runs from the hills through the old town and under nine bridges to the sea " * 2


class RunnerConformance:
    """The model is loaded once for all tests, as `penstock worker --engine ENGINE --model SOURCE` loads it, and again
    for those that stop it. A greedy answer to `prompt` of at most `tokens_max` tokens must have at least twelve deltas,
    and be the same every time.

    `failing_prompt` is one at which the model fails, if there is any. A class whose engine can be broken overrides
    `break_engine`."""

    engine: ClassVar[str] = ""
    source: ClassVar[str] = "model"
    options: ClassVar[Mapping[str, Any]] = {}
    prompt: ClassVar[str] = PROMPT
    other_prompts: ClassVar[tuple[str, ...]] = ("What is the sea?", "Count the bridges for me, please.")
    failing_prompt: ClassVar[str | None] = None
    tokens_max: ClassVar[int] = 32
    seconds_max: ClassVar[float] = 30.0

    @classmethod
    def load(cls) -> Loaded:
        """Load the model anew."""
        (spec,) = parse_specs([cls.source], engine=cls.engine, options=cls.options)
        return asyncio.run(load(spec, cls.settings()))

    @classmethod
    def settings(cls) -> Settings:
        return load_settings()

    def break_engine(self, driver: Driver) -> None:
        """Break the engine so that only a new process helps: kill its core, say."""
        pytest.skip("nothing breaks this engine")

    @pytest.fixture(scope="class")
    @classmethod
    def driver(cls) -> Iterator[Driver]:
        driver = Driver(cls.load(), seconds_max=cls.seconds_max)
        yield driver
        driver.close()

    @pytest.fixture
    def own_driver(self) -> Iterator[Driver]:
        """A runner that the test may stop or break."""
        driver = Driver(self.load(), seconds_max=self.seconds_max)
        yield driver
        driver.abandon()

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, driver: Driver) -> Attempt:
        """An undisturbed answer."""
        return cls.ask(driver).wait()

    @classmethod
    def ask(cls, driver: Driver, prompt: str = "", *, isolated: bool = False, **more: Any) -> Attempt:
        """Give the runner a greedy chat of at most `tokens_max` tokens."""
        job = driver.chat(prompt or cls.prompt, **({"max_tokens": cls.tokens_max} | more))
        return driver.start(job, isolated=isolated)

    def test_an_answer_is_numbered_from_its_start_to_one_end(self, whole: Attempt) -> None:
        assert isinstance(whole.events[0], Started)
        assert isinstance(whole.outcome, Completed)
        assert [event.seq for event in whole.events] == list(range(len(whole.events)))
        assert sum(isinstance(event, Finished) for event in whole.events) == 1
        assert len(whole.events) >= 14, "the answer to `prompt` is too short for these tests"

    def test_a_greedy_answer_is_the_same_beside_others(self, driver: Driver, whole: Attempt) -> None:
        prompts = [*self.other_prompts, self.prompt]

        beside = [self.ask(driver, prompt) for prompt in prompts]

        assert beside[-1].wait().said() == whole.said()
        assert all(isinstance(attempt.outcome, Completed) for attempt in beside)

    def test_an_answer_ends_before_a_stop_string(self, driver: Driver, whole: Attempt) -> None:
        said = whole.said()
        stop = said[len(said) // 2 :][:3]

        stopped = self.ask(driver, stop=[stop]).wait()

        assert (stopped.said(), stopped.reason()) == (said[: said.index(stop)], "stop")

    def test_an_answer_keeps_its_budget_and_says_so(self, driver: Driver, whole: Attempt) -> None:
        short = self.ask(driver, max_tokens=5).wait()

        assert short.usage.completion_tokens <= 5
        assert short.reason() == "length"
        assert whole.said().startswith(short.said())

    def test_usage_counts_the_prompt_and_the_answer(self, whole: Attempt) -> None:
        assert whole.usage.prompt_tokens > 0
        assert whole.usage.completion_tokens == len(whole.ids()) or whole.usage.completion_tokens > 0
        if whole.ids():
            assert whole.usage.completion_tokens == len(whole.ids())

    def test_choices_end_one_by_one_and_the_job_once(self, driver: Driver, whole: Attempt) -> None:
        both = self.ask(driver, n=2).wait()

        assert (both.said(0), both.said(1)) == (whole.said(), whole.said())
        assert both.reason(0) == both.reason(1) == whole.reason()
        assert [event.seq for event in both.events] == list(range(len(both.events)))

    def test_an_attempt_goes_on_where_the_log_ends(self, driver: Driver, whole: Attempt) -> None:
        for length in self._lengths(whole):
            again = driver.start(whole.delivery.job, whole.events[:length])

            self._assert_continued(driver, again, whole)

    def test_an_attempt_with_a_stop_string_goes_on_too(self, driver: Driver, whole: Attempt) -> None:
        said = whole.said()
        stop = said[3 * len(said) // 4 :][:3]
        stopped = self.ask(driver, stop=[stop]).wait()

        for length in self._lengths(stopped):
            again = driver.start(stopped.delivery.job, stopped.events[:length])

            self._assert_continued(driver, again, stopped)

    def test_an_attempt_of_two_choices_goes_on(self, driver: Driver, whole: Attempt) -> None:
        both = self.ask(driver, n=2).wait()

        again = driver.start(both.delivery.job, both.events[: len(both.events) // 2])

        self._assert_continued(driver, again, both)

    def test_a_log_that_lacks_only_its_end_is_ended(self, driver: Driver, whole: Attempt) -> None:
        again = driver.start(whole.delivery.job, whole.events[:-1])

        assert [type(event) for event in again.wait().events] == [Finished]
        assert isinstance(again.outcome, Completed)

    def test_a_dropped_job_gives_its_place_back_and_writes_nothing_more(self, driver: Driver, whole: Attempt) -> None:
        neighbour = self.ask(driver)
        dropped = driver.start(driver.chat(self.prompt * 3, n=2)).wait(deltas=1)

        driver.runner.drop(dropped.run)

        assert neighbour.wait().said() == whole.said()
        assert driver.eventually(lambda: driver.running == 0)
        assert not dropped.ended or isinstance(dropped.outcome, Completed)

    def test_a_job_past_its_deadline_ends_with_that_outcome(self, driver: Driver) -> None:
        late = driver.start(driver.chat(self.prompt * 3, n=2)).wait(deltas=1)

        driver.runner.end(late.run, Expired(deadline=Deadline.RUN))

        assert late.outcome == Expired(deadline=Deadline.RUN) or isinstance(late.outcome, Completed)
        self._assert_nothing_follows(driver, late)

    def test_ending_or_dropping_what_has_ended_changes_nothing(self, driver: Driver, whole: Attempt) -> None:
        driver.runner.end(whole.run, Expired(deadline=Deadline.RUN))
        driver.runner.drop(whole.run)

        self._assert_nothing_follows(driver, whole)

    def test_a_suspect_begins_before_all_that_come_later(self, driver: Driver, whole: Attempt) -> None:
        first = self.ask(driver).wait(deltas=1)
        suspect = self.ask(driver, isolated=True)
        later = [self.ask(driver, prompt) for prompt in (*self.other_prompts, self.prompt)]

        texts = [attempt.wait().said() for attempt in (first, suspect, later[-1])]

        assert texts == [whole.said()] * 3
        assert all(_at(suspect) <= _at(attempt.wait()) for attempt in later)

    def test_more_jobs_than_places_all_end(self, driver: Driver) -> None:
        jobs = [driver.chat(self.prompt, max_tokens=2) for _ in range(driver.runner.places + 2)]

        attempts = [driver.start(job) for job in jobs]

        assert all(isinstance(attempt.outcome, Completed) for attempt in attempts)
        assert driver.eventually(lambda: driver.runner.waiting == 0)
        assert driver.runner.places > 0

    def test_a_job_that_fails_fails_alone_with_a_traceback(self, driver: Driver, whole: Attempt) -> None:
        if self.failing_prompt is None:
            pytest.skip("no prompt makes this model fail")

        neighbour = self.ask(driver)
        failed = driver.start(driver.chat(self.failing_prompt)).wait()

        assert isinstance(failed.outcome, Failed)
        assert (failed.outcome.code, "Traceback" in failed.outcome.detail) == ("engine_error", True)
        assert neighbour.wait().said() == whole.said()
        self._assert_nothing_follows(driver, failed)

    def test_a_runner_whose_events_nobody_takes_waits_and_is_alive(self, driver: Driver, whole: Attempt) -> None:
        driver.pause()
        attempts = [self.ask(driver) for _ in range(4)]
        time.sleep(1)  # Redis is away for longer than a step may take

        alive = driver.runner.alive(step_timeout_s=0.5)
        driver.go_on()

        assert alive
        assert [attempt.wait().said() for attempt in attempts] == [whole.said()] * 4

    def test_a_stopped_runner_leaves_jobs_that_another_continues(self, own_driver: Driver, driver: Driver) -> None:
        whole = self.ask(driver, n=2).wait()
        begun = own_driver.start(whole.delivery.job).wait(deltas=2)

        own_driver.close()
        again = driver.start(begun.delivery.job, begun.events) if not begun.ended else begun

        assert not own_driver.runner.alive(step_timeout_s=60)
        self._assert_continued(driver, again, whole)

    def test_a_broken_engine_is_noticed(self, own_driver: Driver) -> None:
        own_driver.start(own_driver.chat(self.prompt * 3, n=2)).wait(deltas=1)
        assert own_driver.runner.alive(step_timeout_s=60)

        self.break_engine(own_driver)

        assert own_driver.eventually(lambda: not own_driver.runner.alive(step_timeout_s=60))

    @staticmethod
    def _lengths(whole: Attempt) -> list[int]:
        """About a dozen places at which a log may have ended."""
        every = max(len(whole.events) // 12, 1)
        return list(range(1, len(whole.events), every))

    @staticmethod
    def _assert_continued(driver: Driver, again: Attempt, whole: Attempt) -> None:
        """The answer goes on as the model's class of resumption promises."""
        again.wait()
        assert [event.seq for event in again.log] == list(range(len(again.log)))
        choices = range(whole.delivery.job.sequences)
        lacks_only_its_end = len(again.delivery.log) == len(whole.events) - 1
        if driver.resume == "restart" and not (again.begins or lacks_only_its_end):
            assert isinstance(again.outcome, Failed)
            assert again.outcome.code == "upstream_lost"
            return
        assert isinstance(again.outcome, Completed)
        if driver.resume == "exact" or again.begins:
            assert [again.said(choice) for choice in choices] == [whole.said(choice) for choice in choices]
            assert [again.reason(choice) for choice in choices] == [whole.reason(choice) for choice in choices]

    @staticmethod
    def _assert_nothing_follows(driver: Driver, ended: Attempt) -> None:
        count = len(ended.events)
        driver.start(driver.chat("And then?", max_tokens=1)).wait()
        assert isinstance(ended.events[-1], Finished)
        assert len(ended.events) == count


def _at(attempt: Attempt) -> float:
    assert attempt.first_delta_at is not None
    return attempt.first_delta_at
