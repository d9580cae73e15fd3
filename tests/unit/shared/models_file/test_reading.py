"""A models file becomes tables; what is wrong in it is told with its line and its key."""

import math
from pathlib import Path

import pytest

from shared.models_file.problems import ModelsFileError
from shared.models_file.reading import ModelsFile, parse, read
from shared.models_file.tables import Load

WHOLE = b"""
root = "models"
default = "qwen"
[host]
memory = "22GiB"
[defaults]
keep_alive = "10m"
sequences_max = 8
[models.qwen]
source = "Qwen2.5-7B-Instruct"
aliases = ["gpt-4o-mini"]
adapters = {sql = "adapters/sql"}
pin = true
workers = [1, 2]
load = "at_start"
recommended = {temperature = 0.7}
[models.gguf]
run = "llama-server -m q4.gguf --port ${PORT}"
keep_alive = "forever"
[models.gpt-4o]
upstreams = [{url = "https://api.openai.com/v1", key = "${env:OPENAI_API_KEY}", requests_per_minute = 500}]
sequences_max = 64
[routes.coder]
order = ["qwen", "gpt-4o"]
spill_after = "30s"
"""


def parsed(text: str | bytes) -> ModelsFile:
    return parse(text if isinstance(text, bytes) else text.encode(), Path("/etc/models.toml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ModelsFileError) as raised:
        parsed(text)
    return [str(each) for each in raised.value.problems]


def test_each_model_has_what_it_says_and_else_the_defaults() -> None:
    file = parsed(WHOLE)

    qwen, gguf, openai = (file.models[name] for name in ("qwen", "gguf", "gpt-4o"))
    assert (qwen.load, qwen.pin, qwen.workers, qwen.keep_alive) == (Load.AT_START, True, (1, 2), 600)
    assert (gguf.load, gguf.keep_alive, gguf.workers) == (Load.ON_DEMAND, math.inf, (1, 1))
    assert (qwen.settings, openai.settings) == ({"sequences_max": 8}, {"sequences_max": 64})
    assert qwen.recommended.given == {"temperature": 0.7}
    assert file.host.memory == 22 * 2**30
    assert file.routes["coder"].spill_after == 30
    assert file.root == Path("/etc/models")
    assert file.model_of("sql") == file.model_of("gpt-4o-mini") == "qwen"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[models.a]\nsorce = 'x'\n", "line 2: models.a.sorce: there is no such key; did you mean 'source'?"),
        ("[models.a]\nload = 'later'\n", "line 2: models.a.load: it must be 'at_start', 'on_demand' or 'manual'"),
        ("[host]\nmemory = 22\n[models.a]\n", "line 2: host.memory: it must be auto or a size like 22GiB or 800MiB"),
        ("[models.a]\nport = 1\n", "line 2: models.a.port: this is a setting of whole processes; set PENSTOCK_PORT in"),
        ("default = 'b'\n[models.a]\n", "line 1: default: there is no model or route 'b'"),
        ("[models.a]\n[models.b]\naliases = ['a']\n", "line 3: models.b.aliases[0]: the name 'a' is taken by models.a"),
        ("[models.a]\nrun = 'x'\n", "line 2: models.a.run: it must hold ${PORT}"),
        ("[models.a]\nsource = \n", "line 2: this is not TOML"),
        ("[models.a]\nworkers = [2, 1]\n", "line 2: models.a.workers: it must be [least, most]"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_its_key(text: str, told: str) -> None:
    (problem,) = problems(text)

    assert problem.startswith(told)


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(problems("default = 'z'\n[models.a]\nsorce = 1\nload = 2\n")) == 3


def test_a_secret_is_not_told() -> None:
    text = "[models.a]\nupstreams = [{url = 'http://h/v1', key = 'sk-secret'}]\n"

    assert "sk-secret" not in "".join(problems(text))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelsFileError, match="cannot be read"):
        read(tmp_path / "models.toml")
