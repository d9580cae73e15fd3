"""The conformance suite, run on every runner of the house that needs no further package."""

from typing import ClassVar

import pytest

from penstock.driver import Driver
from penstock.testing import RunnerConformance
from shared.settings import Settings, load_settings


class TestScripted(RunnerConformance):
    source = "scripted"
    failing_prompt = "please fault:raise@3"

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(scripted_tokens=24, scripted_step_ms=1, sequences_max=4)


@pytest.mark.slow
class TestNative(RunnerConformance):
    source = "builtin"

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(sequences_max=4)


class TestRepeatingSource(RunnerConformance):
    engine = "tests.unit.workers.sources:Echo"
    failing_prompt = "fail"

    def break_engine(self, driver: Driver) -> None:
        driver.start(driver.chat("break"))

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(sequences_max=4)


class TestExactSource(TestRepeatingSource):
    engine: ClassVar[str] = "tests.unit.workers.sources:Continuing"


class TestRestartingSource(TestRepeatingSource):
    engine: ClassVar[str] = "tests.unit.workers.sources:Restarting"


class TestPlainSource(TestRepeatingSource):
    engine: ClassVar[str] = "tests.unit.workers.sources:Plain"
