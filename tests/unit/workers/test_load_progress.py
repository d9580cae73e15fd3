"""A worker tells its host how far its load is."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from shared.settings import load_settings
from workers.engines.native.loader import BAR, load_torch_engine
from workers.loading.model_spec import BUILTIN
from workers.process.load_progress import EACH_S, PROGRESS_FILE, WARM_UP, WEIGHTS, read, tell, told_while


def test_what_a_worker_tells_is_read_and_without_a_host_it_tells_nothing(tmp_path: Path) -> None:
    there = {PROGRESS_FILE: str(tmp_path / "a.progress")}

    assert read(tmp_path / "a.progress") == ("", None)
    tell(WEIGHTS, 0.5, there)
    assert read(tmp_path / "a.progress") == (WEIGHTS, 0.5)
    tell(WARM_UP, environment=there)
    assert read(tmp_path / "a.progress") == (WARM_UP, None)
    tell(WEIGHTS, environment={})
    assert [each.name for each in tmp_path.iterdir()] == ["a.progress"]
    (tmp_path / "a.progress").write_text("[")
    assert read(tmp_path / "a.progress") == ("", None)


def test_items_that_are_taken_are_told_from_time_to_time(tmp_path: Path) -> None:
    there = {PROGRESS_FILE: str(tmp_path / "a.progress")}
    ticks = iter([0, 0, EACH_S, EACH_S, EACH_S * 1.5, EACH_S * 2, EACH_S * 2, EACH_S * 2])
    seen = [read(tmp_path / "a.progress")[1] for _ in told_while(WEIGHTS, "abcde", 5, there, lambda: next(ticks))]

    assert seen == [0.0, 0.0, 0.4, 0.4, 0.8]


def test_transformers_shows_the_loading_of_weights_as_the_bar_that_is_told() -> None:
    bars: list[tuple[str, int]] = []

    def shown(factory: Any, arguments: Any, options: Any) -> Any:
        if arguments and hasattr(arguments[0], "__len__"):
            bars.append((options.get("desc"), len(arguments[0])))
        return factory(*arguments, **options)

    before = logging.set_tqdm_hook(shown)
    try:
        AutoModelForCausalLM.from_pretrained(BUILTIN)
    finally:
        logging.set_tqdm_hook(before)

    assert [parameters > 3 for name, parameters in bars if name == BAR] == [True]


def test_a_model_whose_weights_are_loaded_warms_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "a.progress"))

    engine = load_torch_engine(str(BUILTIN), load_settings())

    assert engine.limits.vocabulary > 0
    assert read(tmp_path / "a.progress") == (WARM_UP, None)
