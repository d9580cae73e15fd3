"""Pooling turns the hidden states of a passage into its vector, as the model's own folder says (the modules that
sentence-transformers writes), or by their mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize

from shared.domain.errors import SettingsError
from workers.engines.native.hub_files import found_file

Pool = Callable[[torch.Tensor], torch.Tensor]
FLAG = "pooling_mode_"


def _weighted_mean(hidden: torch.Tensor) -> torch.Tensor:
    """The mean with later tokens counting more, in proportion to their position."""
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)
    return weights @ hidden / weights.sum()


MODES: dict[str, Pool] = {
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.amax(0),
    "mean_sqrt_len": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
    "weightedmean": _weighted_mean,
}


class Pooling:
    """`__call__`: float32 [tokens, hidden size] to [vector size], of unit length. `tokens_max` is the longest passage
    that the model's folder names, if any."""

    def __init__(self, modes: list[str], dense: nn.Module | None = None, tokens_max: int | None = None) -> None:
        self._modes = [MODES[mode] for mode in modes]
        self._dense = dense or nn.Identity()
        self.tokens_max = tokens_max

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([mode(hidden) for mode in self._modes])
        return normalize(self._dense(pooled), dim=0)


MEAN = Pooling(["mean"])


def is_embedding_folder(source: str, **where: Any) -> bool:
    return found_file(source, "modules.json", **where) is not None


def load_pooling(source: str, device: torch.device, **where: Any) -> Pooling:
    """The pooling of a folder or hub id. `where`: revision and token of a hub id. Raises SettingsError for an unknown
    module."""
    listed = _json(source, "modules.json", where)
    modes, layers = ["mean"], []
    for module in listed or []:
        match module["type"].rpartition(".")[2]:
            case "Pooling":
                modes = _modes(_json(source, f"{module['path']}/config.json", where))
            case "Dense":
                layers.append(_dense(source, module["path"], where).to(device))
            case "Transformer" | "Normalize":
                pass
            case kind:
                raise SettingsError(f"MODEL: {source} has a module {kind}, which is not supported here")
    bert = _json(source, "sentence_bert_config.json", where) or {}
    return Pooling(modes, nn.Sequential(*layers) if layers else None, bert.get("max_seq_length"))


def _modes(config: Any) -> list[str]:
    named = config.get("pooling_mode")
    asked = (
        [named]
        if isinstance(named, str)
        else named or [key.removeprefix(FLAG) for key, value in config.items() if key.startswith(FLAG) and value]
    )
    return [mode.removesuffix("_tokens").removesuffix("_token") for mode in asked]


def _dense(source: str, path: str, where: dict[str, Any]) -> nn.Module:
    config: Any = _json(source, f"{path}/config.json", where)
    layer = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    weights = load_file(found_file(source, f"{path}/model.safetensors", **where) or "")
    layer.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    return nn.Sequential(layer.requires_grad_(False), getattr(nn, activation)())


def _json(source: str, name: str, where: dict[str, Any]) -> Any:
    path = found_file(source, name, **where)
    return json.loads(Path(path).read_text()) if path else None
