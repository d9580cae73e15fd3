"""A host starts each worker with what the file says of its model, and puts no secret on a command line."""

from pathlib import Path

import pytest

from shared.models_file.reading import parse
from workers.host.hosted_models import PLAIN_BYTES, HostedSpec, hosted_specs

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


def test_a_model_without_a_source_is_the_folder_of_its_name_below_root(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    file = parse(b'[models.small]\n[models.hub]\nsource = "org/hub"\n', tmp_path / "models.toml")

    found = hosted_specs(file, devices_max=0)

    assert found["small"].arguments == (f"small={tmp_path / 'small'}",)
    assert found["hub"].arguments == ("hub=org/hub",)


def test_weights_in_two_formats_are_loaded_once(tmp_path: Path) -> None:
    file = parse(b'[models.small]\nengine = "native"\n', tmp_path / "models.toml")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.safetensors").write_bytes(b"x" * 1000)
    before = hosted_specs(file, devices_max=0)["small"].bytes_estimate

    (tmp_path / "small" / "pytorch_model.bin").write_bytes(b"x" * 1000)

    assert before is not None
    assert hosted_specs(file, devices_max=0)["small"].bytes_estimate == before


def test_a_command_line_holds_the_name_of_a_variable_and_not_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")

    said = str(specs()["gguf"])

    assert "${env:SECRET}" in said
    assert "hidden" not in said


def test_only_what_a_worker_is_told_makes_it_another_one() -> None:
    assert specs()["tiny"].digest == specs(keep_alive="9m")["tiny"].digest
    assert specs()["tiny"].digest != specs(temperature=0.8)["tiny"].digest


def test_the_engine_of_the_environment_is_that_of_models_which_name_none_as_for_their_workers(tmp_path: Path) -> None:
    text = '[models.a]\nsource = "builtin"\n[models.b]\nsource = "builtin"\nengine = "native"\n'
    text += '[models.c]\nrun = "x ${PORT}"\n'
    file = parse(text.encode(), tmp_path / "models.toml")

    found = hosted_specs(file, devices_max=2, engine="scripted")

    assert found["a"].arguments == ("a=builtin", "--engine=scripted")
    assert (found["a"].devices, found["a"].bytes_estimate) == (0, PLAIN_BYTES)
    assert (found["b"].arguments, found["b"].devices) == (("b=builtin", "--engine=native"), 1)
    assert "--engine=command" in found["c"].arguments
    assert hosted_specs(file, devices_max=2)["a"].digest != found["a"].digest
