"""The engine of a model that llama.cpp has loaded: its limits, its context and its tokenizer."""

import logging
import re
from pathlib import Path

import llama_cpp
from transformers import AutoTokenizer

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.cache_size import fitted
from workers.engines.encoder import Encoder
from workers.engines.llamacpp.embedder import TOGETHER_MAX, LlamaEmbedder, LlamaRanker
from workers.engines.llamacpp.engine import LlamaEngine
from workers.engines.llamacpp.library import LlamaContext, LlamaModel, device_memory_free
from workers.engines.llamacpp.options import CacheType, LlamaOptions
from workers.engines.llamacpp.tokenizer import GgufChatTokenizer, GgufTokenizer
from workers.process.free_memory import memory_available
from workers.protocols import Defaults, Embedder
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits, blocks_for
from workers.text.chat_tokenizer import ChatTokenizer

log = logging.getLogger(__name__)
IDS_MAX = 256  # sequences that llama.cpp can tell apart
CELLS_USUAL = 65_536  # unless the setting says how much: llama.cpp reserves memory for masks as wide as the cache
CPU_SHARE, DEVICE_SHARE = 0.4, 0.85  # of the free memory, for the cache
SAVED_SHARE = 0.1  # of the free main memory, for copies of what past sequences left in the cache
CACHE_BYTES: dict[CacheType, float] = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}
RANKS, MEAN = 4, 1  # llama_pooling_type


def load_engine(
    model: LlamaModel, options: LlamaOptions, settings: Settings
) -> tuple[LlamaEngine | Encoder, LlamaContext]:
    """The engine of a model, and the context that it computes in. Raises SettingsError."""
    pooling = _pooling(model)
    if pooling is not None:
        return _encoder(model, options, settings, pooling)
    if llama_cpp.llama_model_has_encoder(model.pointer) or llama_cpp.llama_model_is_diffusion(model.pointer):
        raise SettingsError("MODEL: llama.cpp's encoder-decoder and diffusion models are not served")
    limits = _limits(model, options, settings)
    context = LlamaContext(
        model,
        options,
        cells=limits.blocks * BLOCK_SIZE,
        ids=limits.sequences_max,
        batch_tokens_max=limits.batch_tokens_max,
    )
    engine = LlamaEngine(
        context,
        _tokenizer(model, options),
        limits=limits,
        defaults=_defaults(model),
        step_tokens_max=limits.batch_tokens_max,
        saved_tokens_max=(limits.idle_blocks_max or 0) * BLOCK_SIZE,
    )
    return engine, context


def _pooling(model: LlamaModel) -> int | None:
    """Return how the model pools; None for one that writes."""
    named = model.own("pooling_type")
    if named is not None and int(named) > 0:
        return int(named)
    return MEAN if model.own("attention.causal") == "false" else None


def _keeps_prefixes(model: LlamaModel) -> bool:
    """True if a sequence may begin with another one's cells. A recurrent state is only that of its last token, and a
    sliding window loses what lies before it."""
    recurrent = llama_cpp.llama_model_is_recurrent(model.pointer) or llama_cpp.llama_model_is_hybrid(model.pointer)
    return not recurrent and not llama_cpp.llama_model_n_swa(model.pointer)


def _limits(model: LlamaModel, options: LlamaOptions, settings: Settings) -> EngineLimits:
    context = _context_length(model, settings)
    wanted = settings.sequences_max * blocks_for(context)
    block = int(_bytes_per_token(model, options) * BLOCK_SIZE)
    limits = EngineLimits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=context,
        vocabulary=llama_cpp.llama_vocab_n_tokens(model.vocabulary),
        blocks=wanted if settings.kv_cache_gib else min(wanted, blocks_for(max(context, CELLS_USUAL))),
        prefix_cache=settings.prefix_cache and _keeps_prefixes(model),
        idle_blocks_max=min(options.idle_tokens_max // BLOCK_SIZE, int(memory_available() * SAVED_SHARE) // block),
    )
    return fitted(limits, block, _room(options, settings))


def _context_length(model: LlamaModel, settings: Settings) -> int:
    own = int(llama_cpp.llama_model_n_ctx_train(model.pointer))
    if settings.context_length > own:
        raise SettingsError(f"PENSTOCK_CONTEXT_LENGTH: {settings.context_length} is more than the model's {own}")
    return settings.context_length or own


def _bytes_per_token(model: LlamaModel, options: LlamaOptions) -> float:
    """The size of a cell, over all layers; of a recurrent model, whose states grow with no token, an upper bound."""
    layers = int(llama_cpp.llama_model_n_layer(model.pointer))
    heads = max(int(llama_cpp.llama_model_n_head(model.pointer)), 1)
    size = llama_cpp.llama_model_n_embd(model.pointer) / heads
    numbers = float(model.own("attention.key_length") or size) + float(model.own("attention.value_length") or size)
    per_layer = re.findall(r"\d+", model.own("attention.head_count_kv") or str(heads))
    key_heads = sum(map(int, per_layer)) if len(per_layer) > 1 else layers * int(per_layer[0])
    return max(key_heads, 1) * numbers * CACHE_BYTES[options.cache_type]


def _room(options: LlamaOptions, settings: Settings) -> int:
    """Bytes that the cache may take."""
    if settings.kv_cache_gib:
        return int(settings.kv_cache_gib * 2**30)
    on_device = device_memory_free() if options.gpu_layers and settings.device != "cpu" else 0
    return int(on_device * DEVICE_SHARE if on_device else memory_available() * CPU_SHARE)


def _defaults(model: LlamaModel) -> Defaults:
    named = {
        "temperature": model.number("general.sampling.temp"),
        "top_p": model.number("general.sampling.top_p"),
        "repetition_penalty": model.number("general.sampling.penalty_repeat"),
    }
    top_k = int(model.number("general.sampling.top_k") or 0)
    return Defaults(top_k=max(top_k, 0), **{name: value for name, value in named.items() if value is not None})


def _tokenizer(model: LlamaModel, options: LlamaOptions) -> ChatTokenizer:
    own = GgufTokenizer(model)
    if not options.tokenizer:
        if not own.chat_template:
            log.warning("the model has no chat template; prompts are plain 'role: content' lines")
        return GgufChatTokenizer(own)
    folder = Path(options.tokenizer).expanduser()
    if not folder.is_dir():
        raise SettingsError(f"ENGINE_OPTION tokenizer: there is no folder {folder}")
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise SettingsError(f"ENGINE_OPTION tokenizer: {folder} holds no tokenizer: {error}") from error
    ends = {theirs.eos_token_id} - {None}
    return ChatTokenizer(theirs, own.eos_ids | ends, vocabulary=own.size)


def _encoder(
    model: LlamaModel, options: LlamaOptions, settings: Settings, pooling: int
) -> tuple[Encoder, LlamaContext]:
    tokens_max = _context_length(model, settings)
    limits = EngineLimits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=tokens_max,
        vocabulary=llama_cpp.llama_vocab_n_tokens(model.vocabulary),
    )
    wanted = max(tokens_max, settings.batch_tokens_max)
    together = -(-wanted // TOGETHER_MAX) * TOGETHER_MAX  # llama.cpp ends the process at any other number
    context = LlamaContext(model, options, cells=together, ids=TOGETHER_MAX, batch_tokens_max=together, pooling=pooling)
    own = GgufTokenizer(model)
    size = int(llama_cpp.llama_model_n_embd_out(model.pointer))
    embedder: Embedder = (
        LlamaRanker(context, model, own, tokens_max=tokens_max)
        if pooling == RANKS
        else LlamaEmbedder(context, size=size, tokens_max=tokens_max)
    )
    return Encoder("llamacpp", GgufChatTokenizer(own), embedder, limits=limits), context
