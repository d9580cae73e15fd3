"""Engines and their options: what the command line and the settings say, and how a wrong one is refused."""

import asyncio

import pytest

from shared.domain.errors import EngineError, SettingsError
from shared.observability.metrics import WorkerMetrics
from shared.settings import load_settings
from tests.running_workers import INFO
from workers.engines.scripted import ScriptedEngine
from workers.loading.loaded import load, stepped
from workers.loading.loaders import LOADERS, Loader, imported, loader_of
from workers.loading.model_spec import parse_specs, specs_of
from workers.loading.options import EngineOptions, parse_options, validated
from workers.process.single_thread import SingleThread
from workers.runners.outbox import Outbox
from workers.scheduling.engine_limits import EngineLimits


class Options(EngineOptions):
    layers: int = 0
    key: str = ""
    urls: tuple[str, ...] = ()


def test_a_value_is_json_or_else_a_text() -> None:
    given = parse_options(["layers=3", "key=a=b", 'urls=["http://a", "http://b"]'], '{"key": "c", "flag": true}')

    assert given == {"layers": 3, "key": "a=b", "urls": ["http://a", "http://b"], "flag": True}


def test_a_text_that_looks_like_a_number_is_a_text_where_one_is_wanted() -> None:
    assert validated("mine", parse_options(["key=123"]), Options).key == "123"


@pytest.mark.parametrize(
    ("pairs", "variable", "named"),
    [
        (["layers"], "", "'layers' is not KEY=VALUE"),
        (["=3"], "", "'=3' is not KEY=VALUE"),
        ([], "[1]", "PENSTOCK_ENGINE_OPTIONS: it must be a JSON object"),
        ([], "{", "PENSTOCK_ENGINE_OPTIONS: not JSON"),
        ([f"k{n}=1" for n in range(1001)], "", "1000 are the most"),
    ],
)
def test_what_is_no_option_is_refused(pairs: list[str], variable: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        parse_options(pairs, variable)


def test_an_unknown_option_is_named_and_a_wrong_value_is_not_told() -> None:
    with pytest.raises(SettingsError, match="the engine mine has no option 'layer'; it has layers, key, urls"):
        validated("mine", {"layer": 1}, Options)
    with pytest.raises(SettingsError, match=r"ENGINE_OPTION urls\.0: ") as refused:
        validated("mine", {"urls": [["secret"]]}, Options)
    assert "secret" not in str(refused.value)


async def test_an_engine_refuses_options_that_it_has_not() -> None:
    (spec,) = parse_specs(["m=scripted"], options={"speed": 3})

    with pytest.raises(SettingsError, match="the engine scripted has no option 'speed'; it has devices, sleeps"):
        await load(spec, load_settings())
    with pytest.raises(SettingsError, match="the engine mine has no option 'speed'; it has none"):
        validated("mine", {"speed": 3}, EngineOptions)


def test_an_engine_that_does_not_exist_is_refused_and_all_are_listed() -> None:
    with pytest.raises(
        SettingsError, match="no engine 'warp'; there are upstream, command, native, vllm, scripted, llamacpp"
    ):
        parse_specs(["builtin"], engine="warp")


def test_an_engine_without_files_takes_any_name_for_a_model() -> None:
    (spec,) = specs_of(["bot"], [], [], load_settings(engine="scripted"))

    assert (spec.name, spec.source, spec.engine) == ("bot", "bot", "scripted")


@pytest.mark.parametrize("engine", LOADERS)
def test_every_loader_is_there_unless_its_library_is_missing(engine: str) -> None:
    try:
        load_model = imported(loader_of(engine))
    except SettingsError as error:
        assert engine in ("llamacpp", "vllm"), "only engines with an installation of their own may be missing"
        pytest.skip(str(error))

    assert callable(load_model)


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingsError, match="needs the package not_there, which is not installed"):
        imported(Loader(path="not_there.loader:load"))


async def test_a_runner_that_does_not_sleep_says_so_and_is_always_awake() -> None:
    limits = EngineLimits(sequences_max=1, batch_tokens_max=8, context_length=100, vocabulary=50_000)
    loaded = stepped([INFO], ScriptedEngine(limits=limits, step_ms=0, tokens=1), SingleThread("engine"))
    runner = loaded.make_runner(Outbox(asyncio.get_running_loop(), steps_max=1), WorkerMetrics(), lambda: None)

    assert not runner.sleeps
    assert runner.wake().done()
    with pytest.raises(EngineError, match="keeps its memory"):
        runner.sleep(1)
