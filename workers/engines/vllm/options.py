"""vLLM's arguments: those that Penstock's settings decide, and any other as an option of the engine."""

import dataclasses
import difflib
import json
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from vllm import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.loading.model_spec import ModelSpec

LOGPROBS_MAX = 20  # the most that OpenAI's API allows
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, as vLLM allocates them
GIB = 2**30
# vLLM's argument -> what decides it here.
DECIDED = {
    "model": "the model's source",
    "max_model_len": "PENSTOCK_CONTEXT_LENGTH",
    "max_num_seqs": "PENSTOCK_SEQUENCES_MAX",
    "max_num_batched_tokens": "PENSTOCK_BATCH_TOKENS_MAX",
    "enable_prefix_caching": "PENSTOCK_PREFIX_CACHE",
    "kv_cache_memory_bytes": "PENSTOCK_KV_CACHE_GIB",
    "dtype": "PENSTOCK_DTYPE",
    "revision": "PENSTOCK_REVISION",
    "trust_remote_code": "PENSTOCK_TRUST_REMOTE_CODE",
    "served_model_name": "the model's names",
    "enable_lora": "--adapter",
    "max_loras": "--adapter",
    "scheduler_cls": "Penstock",
    "scheduling_policy": "Penstock",
    "max_logprobs": "Penstock",
    "data_parallel_size": "the number of workers",
    "skip_tokenizer_init": "Penstock",
}
DEVICES = ("auto", "cpu", "cuda")


def engine_args(spec: ModelSpec, settings: Settings) -> EngineArgs:
    """Raises SettingsError, which names the option or the setting, for what vLLM does not take."""
    _require_settings(settings)
    for name in spec.options:
        _require_option(name)
    arguments = _decided(spec, settings) | {"structured_outputs_config": {"backend": "guidance"}} | dict(spec.options)
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser("vllm", exit_on_error=False))
    try:
        parsed = parser.parse_args([word for name, value in arguments.items() for word in _words(name, value)])
        return EngineArgs.from_cli_args(parsed)
    except (ArgumentError, SystemExit, ValueError, TypeError) as error:
        raise SettingsError(_refusal(error)) from error


def _decided(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    given = settings.model_fields_set
    decided: dict[str, Any] = {
        "model": spec.source,
        "max_logprobs": LOGPROBS_MAX,
        "scheduling_policy": "priority",
    }
    if not settings.prefix_cache:  # else vLLM decides: it has none for models that only read
        decided["enable_prefix_caching"] = False
    if "sequences_max" in given:
        decided["max_num_seqs"] = settings.sequences_max
    if "batch_tokens_max" in given:
        decided["max_num_batched_tokens"] = settings.batch_tokens_max
    if settings.context_length:
        decided["max_model_len"] = settings.context_length
    if settings.kv_cache_gib:
        decided["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * GIB)
    if settings.dtype != "auto":
        decided["dtype"] = settings.dtype
    if settings.revision:
        decided["revision"] = settings.revision
    if settings.trust_remote_code:
        decided["trust_remote_code"] = True
    if spec.adapters:
        decided |= {"enable_lora": True, "max_loras": len(spec.adapters)}
        if "max_lora_rank" not in spec.options:
            decided["max_lora_rank"] = _rank([Path(source) for _, source in spec.adapters])
    return decided


def _rank(folders: list[Path]) -> int:
    """The rank to allocate for adapters. One that is not in a local folder counts as vLLM's own default, 16."""
    files = [folder / "adapter_config.json" for folder in folders]
    most = max(json.loads(file.read_text(encoding="utf-8"))["r"] if file.is_file() else 16 for file in files)
    return min((rank for rank in RANKS if rank >= most), default=RANKS[-1])


def _require_settings(settings: Settings) -> None:
    if settings.device not in DEVICES:
        raise SettingsError("PENSTOCK_DEVICE: vLLM takes the devices in CUDA_VISIBLE_DEVICES; leave this at auto")
    for name in ("device_map", "quantization"):
        if getattr(settings, name):
            raise SettingsError(
                f"PENSTOCK_{name.upper()} is of the native engine; vLLM has options of its own for that"
            )


def _require_option(name: str) -> None:
    known = [field.name for field in dataclasses.fields(EngineArgs)]
    if name in DECIDED:
        raise SettingsError(f"ENGINE_OPTION {name}: this is decided by {DECIDED[name]}")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ", see the arguments of `vllm serve`"
        raise SettingsError(f"ENGINE_OPTION: the engine vllm has no option {name!r}{meant}")


def _words(name: str, value: Any) -> list[str]:
    """An argument as words of vLLM's command line."""
    flag = name.replace("_", "-")
    match value:
        case True:
            return [f"--{flag}"]
        case False:
            return [f"--no-{flag}"]
        case None:
            return []
        case list():
            return [f"--{flag}", *map(str, value)]
        case dict():
            return [f"--{flag}={json.dumps(value)}"]
    return [f"--{flag}={value}"]


def _refusal(error: BaseException) -> str:
    if isinstance(error, ArgumentError) and error.argument_name:
        name = error.argument_name.split("/")[0].removeprefix("--").replace("-", "_")
        return f"ENGINE_OPTION {name}: {error.message}"
    said = str(error).strip().splitlines()
    return f"ENGINE_OPTION: vLLM refuses its options: {said[0] if said else type(error).__name__}"
