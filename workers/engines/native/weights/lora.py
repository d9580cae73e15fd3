"""LoRA adapters (Hu et al. 2021) beside their base model, several of them in one batch: each token of a step gets the
addition of its own sequence's adapter. They are read from the files that peft writes."""

import json
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from shared.domain.errors import SettingsError
from workers.engines.native.hub_files import found_file
from workers.engines.native.transfer import uploaded

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Options of peft beyond plain LoRA, with the values at which each is off.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "alora_invocation_tokens": (None, []),
}
Rows = torch.Tensor | None  # int64 indices into the tokens of a step; None for all of them


class Adapters:
    """The adapters of one model. With `alone`, the addition to a token depends to the last bit on that token alone."""

    def __init__(self, *, alone: bool = False) -> None:
        self.alone = alone
        self._names: set[str] = set()
        self.active: list[tuple[str, Rows]] = []

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @contextmanager
    def computing(self, names: Seq[str], counts: Seq[int], device: torch.device) -> Iterator[None]:
        """A context around a call of the model: `counts` tokens get the adapter of each of `names`; an empty name is no
        adapter."""
        present = set(names) if self._names else set()
        if len(present) > 1:
            of_tokens = np.repeat(np.array(names), counts)
            self.active = [(name, uploaded(np.flatnonzero(of_tokens == name), device)) for name in present if name]
        else:
            self.active = [(name, None) for name in present if name]
        try:
            yield
        finally:
            self.active = []

    def load(self, name: str, source: str, model: Any, **where: Any) -> None:
        """Load an adapter. `where`: revision and token of a hub id. Raises SettingsError for anything but a plain LoRA
        of this model."""
        config, weights = _read(source, where)
        for module, sides in weights.items():
            down, up = (sides[side].to(model.device, model.dtype) for side in ("A", "B"))
            layer = _adapted(model, module, source, self)
            try:
                layer.add(name, down, up * _scale(config, module, len(down)))
            except RuntimeError as error:
                raise SettingsError(f"ADAPTER: {source} does not fit the model's {module}") from error
        self._names.add(name)


class AdaptedLinear(nn.Module):
    """A layer with adapters. `base` is any layer from [..., tokens, in] to [..., tokens, out]."""

    def __init__(self, base: nn.Module, adapters: Adapters) -> None:
        super().__init__()
        self.base = base
        self._adapters = adapters
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def add(self, name: str, down: torch.Tensor, up: torch.Tensor) -> None:
        """Add an adapter's matrices. `down`: [rank, in], `up`: [out, rank]. Raises RuntimeError if they do not fit."""
        down, up = down.T.contiguous(), up.T.contiguous()
        self._weights[name] = (down, up)
        row = down.new_zeros(1, 1, len(down))
        torch.add(self.base(row), row @ down @ up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x)
        for name, rows in self._adapters.active:
            if weights := self._weights.get(name):
                down, up = weights
                if rows is None:
                    out = out + self._added(x, down, up)
                else:
                    out = out.index_add(-2, rows, self._added(x.index_select(-2, rows), down, up))
        return out

    def _added(self, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`x`: [1, tokens, in]."""
        if not self._adapters.alone:
            return x @ down @ up
        each = x.transpose(0, 1)  # libraries choose their code by the number of rows
        return (each @ down.expand(len(each), -1, -1) @ up.expand(len(each), -1, -1)).transpose(0, 1)


def _read(source: str, where: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """The configuration, and the two matrices of each module."""
    paths = [found_file(source, name, **where) for name in ("adapter_config.json", "adapter_model.safetensors")]
    if None in paths:
        raise SettingsError(f"ADAPTER: {source} has no adapter_config.json with an adapter_model.safetensors")
    config_path, weights_path = (Path(path or "") for path in paths)
    config = json.loads(config_path.read_text())
    for key, plain in PLAIN.items():
        if config.get(key) not in plain:
            raise SettingsError(f"ADAPTER: {source} has {key} {config[key]!r}, which is not supported here")
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(weights_path).items():
        match = KEY.fullmatch(key)
        if match is None:
            raise SettingsError(f"ADAPTER: {source} holds {key}, which is no LoRA matrix of a linear layer")
        weights.setdefault(match["module"], {})[match["side"]] = tensor.float()
    return config, weights


def _adapted(model: nn.Module, module: str, source: str, adapters: Adapters) -> AdaptedLinear:
    """The layer of that name, made able to take adapters."""
    path, _, last = module.rpartition(".")
    if "experts" in path or last == "lm_head":
        raise SettingsError(f"ADAPTER: {source} adapts {module}, which is not supported here")
    try:
        parent = model.get_submodule(path)
        layer = parent.get_submodule(last)
    except AttributeError as error:
        raise SettingsError(f"ADAPTER: {source} adapts {module}, which the model does not have") from error
    if not isinstance(layer, AdaptedLinear):
        layer = AdaptedLinear(layer, adapters)
        setattr(parent, last, layer)
    return layer


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """The scale of a module: its own if a pattern names it."""
    own = [
        alpha
        for pattern, alpha in (config.get("alpha_pattern") or {}).items()
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)
    ]
    alpha = float(own[0] if own else config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
