"""The runner of vLLM does what a worker relies on; also with a scheduler of vLLM's that Penstock does not know."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import psutil
import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from penstock.driver import Driver
from penstock.testing import RunnerConformance
from shared.domain.events import Completed, Started
from shared.domain.job import Grammar, GrammarKind
from shared.settings import Settings, load_settings
from tests.vllm.conftest import LOAD_S, SAME
from tests.vllm.test_answers import SCHEMA
from workers.engines.vllm.scheduler_hook import PROMOTE, supports


class TestRunner(RunnerConformance):
    engine = "vllm"
    source = "builtin"
    options: ClassVar[dict[str, Any]] = {"enforce_eager": True}
    seconds_max = LOAD_S

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(**SAME)

    def break_engine(self, driver: Driver) -> None:
        started = psutil.Process().children(recursive=True)
        cores = [process for process in started if any("EngineCore" in part for part in process.cmdline())]
        max(cores, key=psutil.Process.create_time).kill()  # the newest; process numbers wrap around


class TestUnknownScheduler:
    """A newer vLLM may have renamed what the hook uses."""

    @pytest.fixture(scope="class")
    @classmethod
    def driver(cls) -> Iterator[Driver]:
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(Scheduler, PROMOTE)
            assert not supports()
            driver = Driver(TestRunner.load(), seconds_max=LOAD_S)
        yield driver
        driver.close()

    def test_an_answer_with_a_grammar_goes_on_in_it(self, driver: Driver) -> None:
        job = driver.chat(TestRunner.prompt, max_tokens=200)
        grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(SCHEMA), param="response_format")
        job = replace(job, sampling=replace(job.sampling, grammar=grammar, presence_penalty=0.5))
        whole = driver.start(job).wait()

        again = driver.start(job, whole.events[: len(whole.events) // 2])

        assert isinstance(again.outcome, Completed)
        assert again.said() == whole.said()
        assert set(json.loads(whole.said())) == set(SCHEMA["properties"])

    def test_a_first_event_names_the_number_format(self, driver: Driver) -> None:
        started = driver.start(driver.chat("Hello", max_tokens=1)).wait().events[0]

        assert isinstance(started, Started)
        assert started.dtype == "float32"


def test_this_vllm_has_what_the_hook_uses() -> None:
    assert supports()
