"""The conformance suite on the upstream engine, by text and by tokens, with stand-ins behind it."""

from collections.abc import Iterator

import pytest

from penstock.driver import Attempt
from penstock.testing import RunnerConformance
from shared.settings import Settings, load_settings
from tests.upstreams import StandIn, budgeted_chat, counting, in_thread, token_server
from workers.loading.model_spec import BUILTIN


class UpstreamConformance(RunnerConformance):
    engine = "upstream"
    source = "m"

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(sequences_max=4)


class TestText(UpstreamConformance):
    """Words of four characters, so that the estimates are exact."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[StandIn]:
        with in_thread(budgeted_chat([f" w{number:02}" for number in range(40)])) as server:
            server.step_s = 0.002
            cls.options = {"urls": server.url, "provider": "vllm"}
            yield server


class TestTokens(UpstreamConformance):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls) -> Iterator[StandIn]:
        with in_thread(token_server(counting)) as server:
            server.step_s = 0.002
            cls.options = {"urls": server.url, "tokenizer": str(BUILTIN), "price": {"input": 3, "output": 5}}
            yield server

    def test_an_answer_has_its_cost(self, whole: Attempt) -> None:
        usage = whole.usage

        assert usage.cost_micros == 3 * usage.prompt_tokens + 5 * usage.completion_tokens > 0
