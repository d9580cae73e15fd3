"""The models of a command line that names none."""

from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from shared.domain.errors import SettingsError
from tests.upstreams import StandIn, in_thread
from workers.engines.upstream.discovery import MODELS_MAX, listed_models, options_of


def listing(*names: str) -> StandIn:
    return StandIn({}, answers={"/models": lambda body: {"object": "list", "data": [{"id": name} for name in names]}})


def test_each_model_that_the_server_lists_is_served_by_a_name_that_a_queue_can_have() -> None:
    with in_thread(listing("Qwen/Qwen3-8B", "llama3:8b")) as server:
        assert listed_models(options_of({"urls": server.url})) == ["Qwen/Qwen3-8B", "llama3-8b=llama3:8b"]


def test_a_model_that_the_options_name_is_not_looked_for() -> None:
    assert listed_models(options_of({"urls": "http://127.0.0.1:9/v1", "model": "gpt-4o"})) == ["gpt-4o"]


@pytest.mark.parametrize("names", [(), tuple(f"m{number}" for number in range(MODELS_MAX + 1))])
def test_too_many_or_none_must_be_named(names: tuple[str, ...]) -> None:
    with (
        in_thread(listing(*names)) as server,
        pytest.raises(SettingsError, match=rf"lists {len(names)} models.*--model"),
    ):
        listed_models(options_of({"urls": server.url}))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:9/v1 cannot be reached.*Start it first"):
        listed_models(options_of({"urls": "http://127.0.0.1:9/v1"}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upstream", "http://h/v1", "--engine", "native"], "--upstream is for the engine upstream, not for native"),
        (["m", "--upstream", "localhost:8000"], "it must begin with http:// or https://"),
        (["m", "--upstream", "http://h/v1", "--engine-option", "key=sk-secret"], "it must be ${env:NAME}"),
        (["m", "--upstream", "http://h/v1", "--engine-option", "key=${env:NO_SUCH}"], "NO_SUCH is not set"),
    ],
)
def test_a_wrong_command_line_is_refused_without_showing_a_key(arguments: list[str], message: str) -> None:
    result: Any = CliRunner().invoke(main, ["up", *arguments])

    shown = result.output + str(result.exception)
    assert result.exit_code != 0
    assert message in shown
    assert "secret" not in shown
