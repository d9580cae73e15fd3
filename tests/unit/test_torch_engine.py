"""The torch engines compute what transformers computes: alone, in a batch, in chunks, and after a resume."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from shared.errors import InvalidRequest, SettingsError
from shared.settings import load_settings
from workers.engine.base import Engine
from workers.engine.kv_cache import KVCache
from workers.engine.loader import load_torch_engine
from workers.engine.packed import pack, unpack
from workers.engine.sampler import choose, uniform
from workers.models import BUILTIN, load_engine, parse_spec
from workers.scheduler import Scheduler
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
CONFIGS: dict[str, tuple[Any, str]] = {
    "llama": (LlamaConfig(**SMALL), "batched"),
    "qwen2": (Qwen2Config(**SMALL), "batched"),
    "mistral with a sliding window": (MistralConfig(**SMALL, sliding_window=16), "batched"),
    "gpt2": (
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2),
        "batched",
    ),
    "gemma2, whose scores are capped": (Gemma2Config(**SMALL, head_dim=16, attn_logit_softcapping=0.02), "stepwise"),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine, str]:
    """A random model, saved and loaded as any other one, and the engine that it should get."""
    config, kind = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in reference.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that logits are far apart
    reference.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((BUILTIN / name).read_bytes())
    return reference, load_torch_engine(str(folder), load_settings(sequences_max=8, batch_tokens_max=24)), kind


def prompts(count: int = 6) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 300) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def generate(engine: Engine, sequences: list[Sequence], tokens: int) -> list[list[int]]:
    scheduler = Scheduler(sequences_max=engine.limits.sequences_max, batch_tokens_max=engine.limits.batch_tokens_max)
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.busy:
        batch = scheduler.next_batch()
        for sequence, _ in scheduler.apply(batch, engine.step(batch)):
            if len(sequence.output) == tokens:
                scheduler.drop(sequence)
                engine.free(sequence)
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


def test_it_takes_the_engine_that_computes_right(model: tuple[Any, Engine, str]) -> None:
    _, engine, kind = model

    assert engine.kind == kind


def test_greedy_tokens_equal_transformers_alone_and_batched(model: tuple[Any, Engine, str]) -> None:
    reference, engine, _ = model
    wanted = [expected(reference, prompt, 24) for prompt in prompts()]

    assert generate(engine, [sequence(prompt) for prompt in prompts()], 24) == wanted
    assert [generate(engine, [sequence(prompt)], 24)[0] for prompt in prompts()] == wanted


def test_a_seeded_draw_is_the_same_alone_batched_and_resumed(model: tuple[Any, Engine, str]) -> None:
    _, engine, _ = model
    choosing = [Choosing(seed=n, temperature=0.9, top_p=0.9, top_k=50) for n in range(6)]
    pairs = list(zip(prompts(), choosing, strict=True))

    batched = generate(engine, [sequence(prompt, how) for prompt, how in pairs], 16)

    assert [generate(engine, [sequence(prompt, how)], 16)[0] for prompt, how in pairs] == batched
    resumed = [sequence(prompt, how, output=done[:7]) for (prompt, how), done in zip(pairs, batched, strict=True)]
    assert generate(engine, resumed, 16) == batched


def test_slots_are_given_back(model: tuple[Any, Engine, str]) -> None:
    _, engine, _ = model

    for _ in range(3):
        generate(engine, [sequence(prompt) for prompt in prompts(8)], 3)


def test_a_device_short_of_memory_gets_fewer_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    whole = KVCache._like

    def scarce(cache: KVCache, sample: torch.Tensor) -> torch.Tensor:
        made.append(cache._slots)
        if cache._slots > 5:
            raise torch.OutOfMemoryError("no room")
        return whole(cache, sample)

    monkeypatch.setattr(KVCache, "_like", scarce)

    _, engine = load_engine(parse_spec("builtin"), load_settings(sequences_max=16))

    assert (engine.kind, engine.limits.sequences_max) == ("batched", 4)
    assert made[:2] == [16, 8]


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


def test_draws_follow_the_distribution_and_its_limits() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)

    def counts(**limits: Any) -> list[float]:
        how = [Choosing(**{"seed": n, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | limits) for n in range(4000)]
        drawn = choose(logits, [sequence([1], each) for each in how])
        return [drawn.count(token) / 4000 for token in range(4)]

    assert counts() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert counts(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert counts(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert counts(top_p=0.01)[0] == 1
    assert counts(temperature=0)[0] == 1


def test_penalties_biases_bans_and_min_p() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])

    def best(prompt: list[int], output: list[int], **how: Any) -> int:
        choosing = Choosing(**{"seed": 0, "temperature": 0.0, "top_p": 1.0, "top_k": 0} | how)
        return choose(logits, [sequence(prompt, choosing, output=output)])[0]

    assert best([], [0]) == 0
    assert best([], [0], presence_penalty=1.5) == 1
    assert best([0], [], presence_penalty=1.5) == 0
    assert best([], [0, 0, 1], frequency_penalty=0.8) == 2
    assert best([0], [], repetition_penalty=3) == 1
    assert best([], [], logit_bias=((3, 9.0),)) == 3
    assert best([], [], logit_bias=((0, -100.0),)) == 1
    assert best([], [1], min_tokens=2, banned=frozenset({0})) == 1
    assert best([], [1, 1], min_tokens=2, banned=frozenset({0})) == 0
    drawn = {best([], [n], temperature=5.0, min_p=0.9, seed=n) for n in range(50)}
    assert drawn == {0}


def test_random_numbers_depend_on_seed_choice_and_position_alone() -> None:
    numbers = {uniform(seed, choice, position) for seed in range(-5, 5) for choice in range(5) for position in range(5)}

    assert len(numbers) == 250
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(2**63 - 1, 0, 0) != uniform(-(2**63), 0, 0)


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
