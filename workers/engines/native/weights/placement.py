"""Placement turns the settings into arguments of `from_pretrained`: the devices of a model's weights, and their number
type."""

import atexit
import re
import shutil
import tempfile
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.distributed import DistributedConfig

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.native.weights.parallel import join, require_one
from workers.process.ranks import world

LIMIT = re.compile(r"(?P<device>\d+|cpu|mps|disk)=(?P<bytes>\d+(?:\.\d+)?[KMGT]i?B)")


def placement(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`. Raises SettingsError for an unknown device or size."""
    device = _device(settings)
    if world() > 1:
        for param in ("device_map", "quantization"):
            require_one(f"PENSTOCK_{param.upper()}", getattr(settings, param))
        device = join(device)
        return {"dtype": _dtype(settings, device), "distributed_config": DistributedConfig(tp_plan="auto")}
    asked: dict[str, Any] = {"dtype": _dtype(settings, device), "device_map": {"": device}}
    if settings.device_map:
        # Weights that fit on no device stay in the file system and are read whenever they are needed.
        folder = tempfile.mkdtemp(prefix="penstock-offload-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        asked |= {"device_map": settings.device_map, "offload_folder": folder}
        asked["max_memory"] = _max_memory(settings.max_memory)
    if quantization := _quantization(settings.quantization):
        asked["quantization_config"] = quantization
    return asked


def spread(model: Any) -> bool:
    """True if the model's parts lie on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def _device(settings: Settings) -> torch.device:
    """The device of the settings. A CUDA device is made the current one of this thread, on which Triton launches its
    kernels, whatever device their tensors are on."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if settings.device != "auto":
            device = torch.device(settings.device)
    except RuntimeError as error:
        raise SettingsError(f"PENSTOCK_DEVICE: {settings.device} is not a device") from error
    if device.type == "cuda":
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise SettingsError(f"PENSTOCK_DEVICE: there is no {settings.device}; torch finds {count} CUDA devices")
        torch.cuda.set_device(device)
        if settings.tf32:
            torch.set_float32_matmul_precision("high")
    return device


def _dtype(settings: Settings, device: torch.device) -> Any:
    """The checkpoint's own number type on an accelerator; float32 on a CPU, where half precision is slower."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def _max_memory(text: str) -> dict[int | str, str] | None:
    """Memory by device, from text like `0=20GiB,1=20GiB,cpu=64GiB`."""
    limits: dict[int | str, str] = {}
    for part in filter(None, text.split(",")):
        match = LIMIT.fullmatch(part.strip())
        if match is None:
            raise SettingsError(f"PENSTOCK_MAX_MEMORY: {part!r} is not like 0=20GiB or cpu=64GiB")
        device = match["device"]
        limits[int(device) if device.isdigit() else device] = match["bytes"]
    return limits or None


def _quantization(name: str) -> Any:
    """The quantisation of weights that come in full precision; a quantised checkpoint brings its own."""
    match name:
        case "bitsandbytes-int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        case "bitsandbytes-nf4":
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return None
