"""Adapters as models of their own beside their base, on the same workers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.conftest import BUILTIN
from tests.e2e.harness import Stack, eventually, running_stack
from workers.loading.model_spec import BUILTIN as FOLDER

QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


def make_adapter(folder: Path, seed: int) -> Path:
    """Make an adapter that adds noise to the values of every layer of the built-in model."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in load_file(FOLDER / "model.safetensors").items():
        if name.endswith("v_proj.weight"):
            module = name.removesuffix(".weight")
            rows, columns = tensor.shape
            for side, shape in (("A", (4, columns)), ("B", (rows, 4))):
                key = f"base_model.model.{module}.lora_{side}.weight"
                weights[key] = 0.3 * torch.randn(shape, generator=generator)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    return folder


def tell(stack: Stack, model: str) -> str:
    answer = stack.client().chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=200)
    return answer.choices[0].message.content or ""


def test_adapters_and_their_base_answer_side_by_side_and_survive_a_kill(
    tmp_path: Path, own_redis: EmbeddedRedis, builtin: Stack
) -> None:
    adapters = [f"{name}={make_adapter(tmp_path / name, seed)}" for seed, name in enumerate(("one", "two"))]
    with running_stack(tmp_path, own_redis, "builtin", workers=2, adapters=adapters, deterministic=True) as stack:
        parents = {model.id: getattr(model, "parent", None) for model in stack.client().models.list()}
        assert parents == {BUILTIN: None, "one": BUILTIN, "two": BUILTIN}
        names = [BUILTIN, "one", "two"]
        alone = {name: tell(stack, name) for name in names}
        assert len(set(alone.values())) == 3
        assert alone[BUILTIN] == tell(builtin, BUILTIN)

        with ThreadPoolExecutor(12) as pool:
            together = [(name, pool.submit(tell, stack, name)) for name in names * 4]
            busy = eventually("a busy worker", lambda: [w for w in stack.workers if stack.worker_running(w)])
            busy[0].kill()
            assert [(name, text.result()) for name, text in together] == [(name, alone[name]) for name in names * 4]


def test_a_model_answers_to_all_its_names(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "gpt-4o-mini,small=scripted") as stack:
        assert [model.id for model in stack.client().models.list()] == ["gpt-4o-mini", "small"]
        told = {
            stack.client()
            .chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=5)
            .choices[0]
            .message.content
            for name in ("gpt-4o-mini", "small")
        }
        assert len(told) == 1
