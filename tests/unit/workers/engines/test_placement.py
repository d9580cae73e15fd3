"""Quantised and spread models compute what transformers computes with them; bad settings name themselves."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shared.domain.errors import SettingsError
from shared.settings import load_settings
from tests.models import expected, generate, prompts, random_model, sequence
from workers.engines.native.loader import load_torch_engine
from workers.engines.native.weights.placement import placement

WAYS: dict[str, Any] = {
    "bitsandbytes-int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
PROMPTS = prompts(3)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence bitsandbytes, which logs a line for each multiplication in single precision."""
    logger = logging.getLogger("bitsandbytes")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("way", WAYS)
def test_weights_quantised_at_loading_and_before_give_the_same_tokens(tmp_path: Path, way: str) -> None:
    random_model(tmp_path / "full", "LlamaConfig", {"intermediate_size": 128})
    options: Any = {"quantization_config": WAYS[way](), "dtype": torch.float32, "device_map": {"": "cpu"}}
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "full", **options).eval()
    reference.save_pretrained(tmp_path / "quantised")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "quantised" / name).write_bytes((tmp_path / "full" / name).read_bytes())

    at_loading = load_torch_engine(str(tmp_path / "full"), load_settings(quantization=way))
    before = load_torch_engine(str(tmp_path / "quantised"), load_settings())

    assert at_loading.kind == before.kind == "batched"
    for prompt in PROMPTS:
        assert generate(at_loading, [sequence(prompt)]) == [expected(reference, prompt)]
        assert generate(before, [sequence(prompt)]) == [expected(reference, prompt)]


def test_what_fits_in_no_memory_is_read_from_disk_when_needed(tmp_path: Path) -> None:
    reference = random_model(tmp_path, "LlamaConfig", {"num_hidden_layers": 4})
    wanted = [expected(reference, prompt) for prompt in PROMPTS]

    engine: Any = load_torch_engine(str(tmp_path), load_settings(device_map="auto", max_memory="cpu=200KiB"))

    assert "disk" in engine.model.hf_device_map.values()
    assert generate(engine, [sequence(prompt) for prompt in PROMPTS]) == wanted


@pytest.mark.parametrize(
    ("setting", "value"),
    [("device", "toaster"), ("device_map", "somehow"), ("max_memory", "cpu=lots"), ("quantization", "int1")],
)
def test_a_bad_setting_names_itself(setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"PENSTOCK_{setting.upper()}"):
        placement(load_settings(**{"device_map": "auto", setting: value}))
