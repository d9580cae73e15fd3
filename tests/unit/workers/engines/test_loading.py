"""Loading: the sources that load, the one-sentence refusals of others, and the memory that models take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.domain.errors import InvalidRequest, SettingsError
from shared.settings import load_settings
from workers.engines.cache_size import fitted
from workers.engines.native.loader import load_engine
from workers.engines.native.torch_errors import translated
from workers.engines.native.weights.onednn_linear import pack, unpack
from workers.loading.model_spec import BUILTIN, parse_specs
from workers.process.free_memory import memory_available
from workers.process.host_memory import wait_until_fetched, zeros
from workers.protocols import EngineBroken, OutOfMemory
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits


def test_the_cache_takes_what_memory_there_is_and_no_more() -> None:
    limits = EngineLimits(sequences_max=8, batch_tokens_max=64, context_length=1000, vocabulary=9)

    assert fitted(limits, 1000, 10**9) == limits
    assert fitted(limits, 1000, 100_000).blocks == 100
    small = fitted(limits, 1000, 10_000)
    assert (small.blocks, small.context_length) == (10, 10 * BLOCK_SIZE)
    with pytest.raises(SettingsError, match="KV_CACHE_GIB"):
        fitted(limits, 1000, 999)


def test_packed_weights_compute_the_same_and_can_be_taken_back() -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8, bias=False))
    x = torch.randn(5, 32)
    with torch.inference_mode():
        plain = model(x)

        replaced = pack(model, rows=4)

        assert len(replaced) == 2
        assert torch.allclose(model(x), plain, atol=1e-5)
        unpack(replaced)
        assert torch.equal(model(x), plain)


def test_the_built_in_model_loads_like_any_folder() -> None:
    spec = parse_specs(["builtin"])[0]
    engine = load_engine(spec, load_settings())

    assert (spec.name, engine.kind, engine.limits.context_length) == ("penstock-tiny", "batched", 2048)
    assert (
        engine.tokenizer.decode(engine.tokenizer.chat({"messages": [{"role": "user", "content": "é🙂"}]}).ids).count(
            "🙂"
        )
        == 1
    )
    assert (BUILTIN / "model.safetensors").stat().st_size < 8_000_000


@pytest.mark.parametrize("text", ["/nowhere/at/all", "./nothing", "a,=builtin", "=builtin2 "])
def test_a_model_that_cannot_be_is_one_clear_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="MODEL"):
        parse_specs([text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/tree/main?x=y", "hub id, here Qwen/Qwen2.5-0.5B-Instruct"),
        ("mine=https://example.com/model", "is a URL; name a local folder or a hub id"),
        ("models/qwen.Q4_K_M.gguf", "there is no .gguf file, and no folder with one, at models/qwen.Q4_K_M.gguf"),
        ("{folder}/model.safetensors", "is a file; name the folder with its config.json"),
        ("{folder}/other.gguf", "there is no .gguf file"),
    ],
)
def test_what_is_no_model_is_told_what_would_be(tmp_path: Path, text: str, said: str) -> None:
    for name in ("model.safetensors", "model.gguf"):
        (tmp_path / name).touch()

    with pytest.raises(SettingsError, match=f"^MODEL: .*{said}"):
        parse_specs([text.format(folder=tmp_path)])


def test_a_gguf_file_and_a_folder_with_one_choose_their_engine(tmp_path: Path) -> None:
    folder, file = tmp_path / "quantised", tmp_path / "quantised" / "qwen.Q4_K_M.gguf"
    folder.mkdir()
    file.touch()

    by_file, by_folder, named = parse_specs([str(file), str(folder), f"mine={file}"])

    assert (by_file.name, by_file.engine, by_file.source) == ("qwen.Q4_K_M", "llamacpp", str(file))
    assert (by_folder.name, by_folder.engine, by_folder.source) == ("quantised", "llamacpp", str(folder))
    assert (named.name, named.engine) == ("mine", "llamacpp")
    with pytest.raises(SettingsError, match=r"only the engine llamacpp loads"):
        parse_specs([str(file)], engine="native")
    (folder / "config.json").write_text("{}")
    assert parse_specs([str(folder)])[0].engine == "native"


def test_a_folder_without_weights_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_engine(parse_specs([str(tmp_path)])[0], load_settings())


def test_a_template_that_refuses_is_the_clients_error() -> None:
    engine = load_engine(parse_specs(["builtin"])[0], load_settings())
    tokenizer: Any = engine.tokenizer
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no such role') }}"

    with pytest.raises(InvalidRequest, match="no such role"):
        engine.tokenizer.chat({"messages": [{"role": "user", "content": "x"}]})


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    free = memory_available(tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory_available(tmp_path) > 10**6
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory_available(tmp_path) == 4000


def test_zeros_are_zeros_of_any_type_and_can_be_written() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = zeros([3, 5, 700, 16], dtype)
        wait_until_fetched()
        assert made.dtype is dtype
        assert not made.any()
        made[2, 4] = 7
        assert made.sum() == 7 * 700 * 16


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("no room"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), OutOfMemory),
        (torch.AcceleratorError("unspecified launch failure"), EngineBroken),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineBroken),  # torch before 2.8
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_what_torch_raises_is_told_apart(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected), translated():
        raise raised
