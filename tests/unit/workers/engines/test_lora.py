"""Adapters agree with peft, beside others and their base in one batch."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared.domain.errors import SettingsError
from shared.settings import load_settings
from tests.models import expected, generate, prompts, random_model, sequence
from workers.engines.native.loader import load_torch_engine
from workers.engines.native.weights.lora import AdaptedLinear, Adapters
from workers.loading.model_spec import parse_specs

# Warnings of peft itself.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
# Each model, with the layers that its adapters change.
BASES: dict[str, tuple[str, dict[str, Any], list[str], str]] = {
    "Llama": ("LlamaConfig", {}, ["q_proj", "v_proj", "down_proj"], "batched"),
    "GPT-2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
        ["c_attn", "c_fc"],
        "batched",
    ),
    "Falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}, ["query_key_value"], "stepwise"),
}


def add_adapter(folder: Path, model: Path, seed: int, targets: list[str], **more: Any) -> Any:
    """Write an adapter with random weights to its folder; return peft's model with it."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **more)
    config.fan_in_fan_out = "c_attn" in targets  # GPT-2's layers hold their weights transposed
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), config)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("step_tokens", [24, 512])
@pytest.mark.parametrize("name", BASES)
def test_a_batch_of_several_adapters_gives_each_its_own_tokens(tmp_path: Path, name: str, step_tokens: int) -> None:
    config, more, targets, kind = BASES[name]
    base = random_model(tmp_path / "base", config, more)
    models = {"": base}
    models["one"] = add_adapter(tmp_path / "one", tmp_path / "base", 1, targets)
    models["two"] = add_adapter(tmp_path / "two", tmp_path / "base", 2, targets[:1], use_rslora=True)
    wanted = [expected(models[adapter], prompt) for prompt in prompts() for adapter in models]
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)

    adapters = [(adapter, str(tmp_path / adapter)) for adapter in ("one", "two")]
    engine = load_torch_engine(str(tmp_path / "base"), load_settings(batch_tokens_max=step_tokens), adapters=adapters)

    assert engine.kind == kind
    # Equal prompts lie side by side: one adapter's blocks must not serve another.
    together = [sequence(prompt, adapter=adapter) for prompt in prompts() for adapter in models]
    assert generate(engine, together) == wanted
    alone = [generate(engine, [sequence(prompt, adapter=adapter)])[0] for prompt in prompts() for adapter in models]
    assert alone == wanted


def test_patterns_give_single_layers_their_own_rank_and_weight(tmp_path: Path) -> None:
    random_model(tmp_path / "base", "LlamaConfig", {})
    patterns = {"rank_pattern": {"layers.0.self_attn.q_proj": 6}, "alpha_pattern": {"v_proj": 32}}
    reference = add_adapter(tmp_path / "one", tmp_path / "base", 1, ["q_proj", "v_proj"], **patterns)

    engine = load_torch_engine(str(tmp_path / "base"), load_settings(), adapters=[("one", str(tmp_path / "one"))])

    for prompt in prompts():
        assert generate(engine, [sequence(prompt, adapter="one")]) == [expected(reference, prompt)]


def test_in_deterministic_mode_an_adapter_adds_the_same_bits_whatever_shares_the_batch() -> None:
    torch.manual_seed(0)
    adapters = Adapters(alone=True)
    layer = AdaptedLinear(torch.nn.Identity(), adapters)
    layer.add("one", torch.randn(8, 96), torch.randn(96, 8))
    x = torch.randn(1, 200, 96)
    adapters.active = [("one", None)]
    together = layer(x)

    for count in (1, 2, 3, 17, 100):
        adapters.active = [("one", torch.arange(count))]
        assert torch.equal(layer(x)[:, :count], together[:, :count])
        assert torch.equal(layer(x)[:, count:], x[:, count:])


def break_config(folder: Path, **change: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)


def widen(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(
        {key: tensor.repeat(1, 2) if "lora_A" in key else tensor for key, tensor in load_file(path).items()}, path
    )


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: break_config(folder, use_dora=True), "use_dora"),
        (lambda folder: break_config(folder, peft_type="IA3"), "peft_type"),
        (lambda folder: break_config(folder, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda folder: rename(folder, "q_proj", "x_proj"), "x_proj"),
        (lambda folder: rename(folder, "model.layers.0.self_attn.q_proj", "lm_head"), "lm_head"),
        (lambda folder: rename(folder, "lora_A", "lora_magnitude"), "lora_magnitude"),
        (widen, "q_proj"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_cannot_be_used_stops_the_start(tmp_path: Path, harm: Any, named: str) -> None:
    random_model(tmp_path / "base", "LlamaConfig", {})
    add_adapter(tmp_path / "one", tmp_path / "base", 1, ["q_proj"])
    harm(tmp_path / "one")

    with pytest.raises(SettingsError, match=named):
        load_torch_engine(str(tmp_path / "base"), load_settings(), adapters=[("one", str(tmp_path / "one"))])


def test_adapters_are_named_beside_their_model(tmp_path: Path) -> None:
    one, two = parse_specs(["a=builtin", "b=scripted"], [f"x={tmp_path}@a", "y=org/adapter@a"])

    assert one.adapters == (("x", str(tmp_path)), ("y", "org/adapter"))
    assert two.adapters == ()
    assert parse_specs(["builtin"], ["x=org/adapter"])[0].adapters == (("x", "org/adapter"),)


@pytest.mark.parametrize(
    ("models", "adapters"),
    [
        (["builtin"], ["x"]),
        (["builtin"], ["=org/adapter"]),
        (["builtin"], ["x=/nowhere"]),
        (["builtin"], ["x=org/adapter@other"]),
        (["a=builtin", "b=builtin"], ["x=org/adapter"]),
    ],
)
def test_an_adapter_that_cannot_be_is_one_clear_sentence(models: list[str], adapters: list[str]) -> None:
    with pytest.raises(SettingsError, match="ADAPTER"):
        parse_specs(models, adapters)


@pytest.mark.parametrize(
    ("models", "adapters"), [(["builtin", "builtin"], []), (["builtin"], ["penstock-tiny=org/adapter"])]
)
def test_no_two_have_the_same_name(models: list[str], adapters: list[str]) -> None:
    with pytest.raises(SettingsError, match="same name"):
        parse_specs(models, adapters)
