"""A models file becomes the specs and the settings of a worker."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shared.domain.errors import SettingsError
from shared.models_file.reading import parse
from shared.queue.protocols import Delivery
from shared.settings import load_settings
from tests.factories import make_job
from workers.loading.file_specs import file_specs, read_specs, worker_settings
from workers.loading.loaded import load
from workers.loading.model_spec import BUILTIN, ModelSpec
from workers.loading.options import recommended_of, resolved_options

FILE = """
[defaults]
sequences_max = 8
[models.tiny]
source = "builtin"
aliases = ["small", "tiny-2"]
adapters = {sql = "./sql"}
recommended = {temperature = 0.7, top_k = 5}
drain_s = 3
[models.told]
source = "scripted"
engine = "scripted"
drain_s = 4
[models.gguf]
run = "llama-server --api-key ${env:GGUF_KEY} --port ${PORT}"
[models.gpt-4o]
upstreams = [{url = "https://api.openai.com/v1", key = "${env:OPENAI_API_KEY}", requests_at_once = 3}]
[models.mine]
engine = "bots:Mine"
options = {token = "Bearer ${env:MINE}", list = ["${env:MINE}"]}
"""


def specs(tmp_path: Path, *only: str) -> list[ModelSpec]:
    (tmp_path / "sql").mkdir(exist_ok=True)
    file = parse(FILE.encode(), tmp_path / "models.toml")
    return file_specs(file, only, load_settings())


def test_a_model_has_its_names_its_sources_and_the_settings_of_its_own(tmp_path: Path) -> None:
    (tiny,) = specs(tmp_path, "tiny")

    assert (tiny.name, tiny.aliases, tiny.source, tiny.engine) == ("tiny", ("small", "tiny-2"), str(BUILTIN), "native")
    assert tiny.adapters == (("sql", str(tmp_path / "sql")),)
    assert tiny.settings == {"sequences_max": 8, "drain_s": 3}
    assert worker_settings([tiny], load_settings()).drain_s == 3


def test_a_worker_of_several_models_takes_the_settings_that_they_have_in_common(tmp_path: Path) -> None:
    both = specs(tmp_path, "tiny", "told")

    settings = worker_settings(both, load_settings(drain_s=9))

    assert (settings.sequences_max, settings.drain_s) == (8, 9)


def test_an_alias_and_an_adapter_name_their_model_once(tmp_path: Path) -> None:
    assert [spec.name for spec in specs(tmp_path, "sql", "small", "told")] == ["tiny", "told"]


def test_only_the_worker_reads_variables_and_keys_of_servers_stay_references(tmp_path: Path) -> None:
    gguf, openai, mine = specs(tmp_path, "gguf", "gpt-4o", "mine")
    environment = {"GGUF_KEY": "k", "MINE": "m"}

    assert (gguf.engine, gguf.source) == ("command", "gguf")
    assert (openai.engine, openai.source) == ("upstream", "gpt-4o")
    assert resolved_options(gguf.engine, {**gguf.options, "key": "${env:K}"}, environment) == {
        "run": "llama-server --api-key k --port ${PORT}",
        "ready": "/health",
        "key": "${env:K}",
    }
    urls = [{"url": "https://api.openai.com/v1", "key": "${env:OPENAI_API_KEY}", "requests_at_once": 3}]
    assert resolved_options(openai.engine, openai.options, environment) == {"urls": urls}
    assert resolved_options(mine.engine, mine.options, environment) == {"token": "Bearer m", "list": ["m"]}
    with pytest.raises(SettingsError, match=r"MINE: this environment variable is not set"):
        resolved_options(mine.engine, mine.options, {})


def test_without_names_a_worker_serves_the_whole_file(tmp_path: Path) -> None:
    assert [spec.name for spec in specs(tmp_path)] == ["tiny", "told", "gguf", "gpt-4o", "mine"]


def test_a_name_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"models.toml has no model 'tinny'; did you mean 'tiny'\?"):
        specs(tmp_path, "tinny")


def test_a_missing_folder_is_named_with_its_model(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[models.a]\nsource = "./away"\n')

    with pytest.raises(SettingsError, match=r"models.toml, models.a: there is no folder /.*/away"):
        read_specs(path, "", load_settings())


def test_recommended_parameters_are_for_what_a_request_leaves_open(tmp_path: Path) -> None:
    (told,) = specs(tmp_path, "told")
    spec = replace(told, recommended={"temperature": 0.7, "top_k": 5})
    loaded = asyncio.run(load(spec, load_settings(recommended='{"top_p": 0.5, "top_k": 7}')))

    run = loaded.begin(Delivery(job=make_job(temperature=0.0), claim_token="1", attempt=1))

    sampling = run.delivery.job.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 5, 0.5)


@pytest.mark.parametrize("variable", ["{", '{"temperature": 9}', '{"n": 2}'])
def test_parameters_that_nobody_can_recommend_stop_the_start(variable: str) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_RECOMMENDED: "):
        recommended_of(variable)
