"""From a folder or a hub id to an engine: transformers loads, accelerate places, `trial` picks the engine."""

import logging
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from shared.errors import SettingsError
from shared.settings import Settings
from workers.engine.base import Defaults, Engine
from workers.engine.chat_tokenizer import ChatTokenizer
from workers.engine.memory import keep_freed_memory
from workers.engine.trial import engine_for
from workers.limits import BLOCK_SIZE, Limits

log = logging.getLogger(__name__)
CONTEXT_UNKNOWN = 4096


def load_torch_engine(source: str, settings: Settings) -> Engine:
    """Raises SettingsError, in one sentence, for a source that cannot be loaded."""
    began = time.monotonic()
    keep_freed_memory()
    model, tokenizer = _load(source, settings)
    ends = _ends(model, tokenizer)
    limits = _limits(model.config.get_text_config(), settings)
    engine = engine_for(
        model, ChatTokenizer(tokenizer, ends, vocabulary=limits.vocabulary), limits, _defaults(model), settings
    )
    log.info(
        "model loaded",
        extra={
            "source": source,
            "engine": engine.kind,
            "device": str(model.device),
            "dtype": str(model.dtype),
            "parameters_m": round(model.num_parameters() / 1e6, 1),
            "cache_tokens": engine.limits.blocks * BLOCK_SIZE,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    return engine


def _load(source: str, settings: Settings) -> tuple[Any, Any]:
    device = _device(settings)
    where = {"revision": settings.revision or None, "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=_dtype(settings, device),
            device_map={"": device},
            use_safetensors=True,
            **where,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SettingsError(f"MODEL: {source} cannot be loaded: {first}") from error
    return model.eval(), tokenizer


def _device(settings: Settings) -> torch.device:
    try:
        if settings.device != "auto":
            return torch.device(settings.device)
    except RuntimeError as error:
        raise SettingsError(f"PENSTOCK_DEVICE: {settings.device} is no device") from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(settings: Settings, device: torch.device) -> Any:
    """The checkpoint's own numbers on an accelerator; float32 on a CPU, where half precision is slower."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends an answer: the generation config may name several."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None)


def _limits(config: Any, settings: Settings) -> Limits:
    own = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or CONTEXT_UNKNOWN
    context = settings.context_length or own
    if context > own:
        raise SettingsError(f"PENSTOCK_CONTEXT_LENGTH: {context} is more than the model's {own}")
    return Limits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=context,
        vocabulary=config.vocab_size,
        prefix_cache=settings.prefix_cache,
    )


def _defaults(model: Any) -> Defaults:
    config = model.generation_config
    if config.do_sample is False:
        return Defaults()
    return Defaults(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        repetition_penalty=config.repetition_penalty or 1.0,
    )
