"""The torch engines compute what transformers computes: alone, in a batch, in chunks, and after a resume."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import InvalidRequest, SettingsError
from shared.settings import load_settings
from workers.engine.base import Engine
from workers.engine.memory import memory_available
from workers.engine.packed import pack, unpack
from workers.engine.trial import fitted
from workers.limits import BLOCK_SIZE, Limits
from workers.models import BUILTIN, load_engine, parse_spec
from workers.offline import run
from workers.sequence import Choosing, Sequence

GREEDY = Choosing(seed=0, temperature=0, top_p=1, top_k=0)
SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def prompts(count: int = 6) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 300) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def generate(engine: Engine, sequences: list[Sequence], tokens: int) -> list[list[int]]:
    run(engine, sequences, lambda sequence, _: len(sequence.output) == tokens)
    return [sequence.output for sequence in sequences]


def sequence(
    prompt: list[int], choosing: Choosing = GREEDY, choice: int = 0, output: list[int] | None = None
) -> Sequence:
    return Sequence(job_id="j", choice=choice, prompt=prompt, choosing=choosing, output=list(output or []))


def expected(reference: Any, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    new: list[int] = out[0, len(prompt) :].tolist()
    return new


def test_the_cache_takes_what_memory_there_is_and_no_more() -> None:
    limits = Limits(sequences_max=8, batch_tokens_max=64, context_length=1000, vocabulary=9)

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
    spec = parse_spec("builtin")
    info, engine = load_engine(spec, load_settings())

    assert (info.name, info.engine, info.context_length) == ("penstock-tiny", "batched", 2048)
    assert engine.tokenizer.decode(engine.tokenizer.encode_chat([{"role": "user", "content": "é🙂"}])).count("🙂") == 1
    assert (BUILTIN / "model.safetensors").stat().st_size < 8_000_000


@pytest.mark.parametrize("text", ["/nowhere/at/all", "./nothing", "a,b=builtin", "=builtin2 "])
def test_a_model_that_cannot_be_is_one_clear_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="MODEL"):
        parse_spec(text)


def test_a_folder_without_weights_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_engine(parse_spec(str(tmp_path)), load_settings())


def test_a_template_that_refuses_is_the_clients_error() -> None:
    _, engine = load_engine(parse_spec("builtin"), load_settings())
    tokenizer: Any = engine.tokenizer
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no such role') }}"

    with pytest.raises(InvalidRequest, match="no such role"):
        engine.tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    free = memory_available(tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory_available(tmp_path) > 10**6
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory_available(tmp_path) == 4000
