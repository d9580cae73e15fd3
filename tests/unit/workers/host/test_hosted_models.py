"""A host starts each worker with what the file says of its model, and puts no secret on a command line."""

from pathlib import Path

import pytest

from shared.models_file.reading import parse
from workers.host.hosted_models import HostedSpec, hosted_specs

FILE = """
[models.tiny]
source = "builtin"
adapters = {{sql = "org/sql"}}
recommended = {{temperature = {temperature}}}
prefix_cache = false
keep_alive = "{keep_alive}"
[models.gguf]
run = "llama-server --api-key ${{env:SECRET}} --port ${{PORT}}"
"""


def specs(temperature: float = 0.7, keep_alive: str = "1m") -> dict[str, HostedSpec]:
    text = FILE.format(temperature=temperature, keep_alive=keep_alive)
    return hosted_specs(parse(text.encode(), Path("/etc/models.toml")), devices_max=0)


def test_a_worker_is_told_the_settings_and_the_recommended_parameters_of_its_model() -> None:
    tiny = specs()["tiny"]

    assert tiny.arguments == ("tiny=builtin", "--adapter=sql=org/sql")
    assert tiny.environment == {
        "PENSTOCK_PREFIX_CACHE": "false",
        "PENSTOCK_RECOMMENDED": '{"temperature": 0.7}',
    }


def test_a_command_line_holds_the_name_of_a_variable_and_not_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")

    said = str(specs()["gguf"])

    assert "${env:SECRET}" in said
    assert "hidden" not in said


def test_only_what_a_worker_is_told_makes_it_another_one() -> None:
    assert specs()["tiny"].digest == specs(keep_alive="9m")["tiny"].digest
    assert specs()["tiny"].digest != specs(temperature=0.8)["tiny"].digest
