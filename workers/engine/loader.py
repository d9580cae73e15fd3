"""From a folder or a hub id to an engine: transformers loads the model, accelerate places it, we check that our batch
computes what the model's own code computes, and take the stepwise path where it does not."""

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from shared.errors import SettingsError
from shared.settings import Settings
from workers.engine import attention
from workers.engine.base import Defaults, Engine, Limits, Tokenizer
from workers.engine.batched import BatchedEngine
from workers.engine.chat_tokenizer import ChatTokenizer
from workers.engine.packed import can_pack, pack, unpack
from workers.engine.stepwise import StepwiseEngine
from workers.scheduler import Scheduler
from workers.sequence import Choosing, Sequence

log = logging.getLogger(__name__)
CONTEXT_DEFAULT = 4096
TOLERANCE = 0.05  # of the logits' standard deviation: half precision rounds, a wrong mask does not hide
GREEDY = Choosing(seed=0, temperature=0, top_p=1, top_k=0)


def load_torch_engine(source: str, settings: Settings) -> Engine:
    """Raises SettingsError, in one sentence, for a source that cannot be loaded."""
    began = time.monotonic()
    model, tokenizer = _load(source, settings)
    ends = _ends(model, tokenizer)
    limits = _limits(model.config.get_text_config(), settings)
    engine = _engine(model, ChatTokenizer(tokenizer, ends), limits, _defaults(model))
    log.info(
        "model loaded",
        extra={
            "source": source,
            "engine": engine.kind,
            "device": str(model.device),
            "dtype": str(model.dtype),
            "parameters_m": round(model.num_parameters() / 1e6, 1),
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
    own = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or CONTEXT_DEFAULT
    context = settings.context_length or min(own, CONTEXT_DEFAULT)
    if context > own:
        raise SettingsError(f"PENSTOCK_CONTEXT_LENGTH: {context} is more than the model's {own}")
    return Limits(
        sequences_max=settings.sequences_max,
        batch_tokens_max=settings.batch_tokens_max,
        context_length=context,
        vocabulary=config.vocab_size,
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


def _engine(model: Any, tokenizer: Tokenizer, limits: Limits, defaults: Defaults) -> Engine:
    """With as many slots, at most `limits.sequences_max`, as the device has memory for."""
    own = model.config._attn_implementation
    try:
        return _checked(model, tokenizer, limits, defaults)
    except torch.OutOfMemoryError:
        fewer = replace(limits, sequences_max=limits.sequences_max // 2)
    model.set_attn_implementation(own)
    if not fewer.sequences_max:
        raise SettingsError("PENSTOCK_CONTEXT_LENGTH: the device has no memory for one sequence of that length")
    torch.cuda.empty_cache()
    log.warning("not enough memory for the key-value cache", extra={"sequences_max": fewer.sequences_max})
    return _engine(model, tokenizer, fewer, defaults)


def _checked(model: Any, tokenizer: Tokenizer, limits: Limits, defaults: Defaults) -> Engine:
    """Batched if the batch computes what the model's own code computes, else stepwise; with packed weights likewise."""
    own = model.config._attn_implementation
    expected = _own_logits(model, _probe(model))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    batched = BatchedEngine(model, tokenizer, limits=limits, defaults=defaults)
    if reason := _differs(batched, expected):
        log.warning("this model cannot be batched; it runs stepwise", extra={"reason": reason})
        model.set_attn_implementation(own)
        return StepwiseEngine(model, tokenizer, limits=limits, defaults=defaults)
    if can_pack(model):
        replaced = pack(model, rows=limits.sequences_max)
        if reason := _differs(batched, expected):
            log.warning("weights stay as loaded", extra={"reason": reason})
            unpack(replaced)
    return batched


def _differs(engine: BatchedEngine, expected: torch.Tensor) -> str:
    """Why the engine's logits are not the expected ones; empty when they are."""
    try:
        difference = (_batched_logits(engine, _probe(engine.model)) - expected).abs().max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code makes of replaced parts, it still runs without them
        return f"{type(error).__name__}: {error}"
    return "" if difference < TOLERANCE * expected.std().item() else f"logits differ by {difference:.3g}"


def _probe(model: Any) -> list[int]:
    """A dozen token ids of any vocabulary."""
    return [1 + (7 * i + 3) % (model.config.get_text_config().vocab_size - 1) for i in range(12)]


@torch.inference_mode()
def _own_logits(model: Any, ids: list[int]) -> torch.Tensor:
    out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    last: torch.Tensor = out.logits[0, -1].float()
    return last


def _batched_logits(engine: BatchedEngine, ids: list[int]) -> torch.Tensor:
    """The same by the ways a prompt and its answer really go: chunks, then single tokens, beside another sequence."""
    scheduler = Scheduler(sequences_max=2, batch_tokens_max=5)
    probe = Sequence(job_id="probe", choice=0, prompt=ids[:9], choosing=GREEDY)
    other = Sequence(job_id="other", choice=0, prompt=ids[:3], choosing=GREEDY)
    scheduler.add(other)
    scheduler.add(probe)
    logits = torch.empty(0)
    while probe.computed < len(ids):
        batch = scheduler.next_batch()
        rows = engine.logits(batch)
        sampled = [row.sequence for row in batch.sampling]
        if probe in sampled:
            logits = rows[sampled.index(probe)]
        known = {probe: ids, other: ids[3:] * 2}
        scheduler.apply(batch, [known[s][min(s.length, len(ids) - 1)] for s in sampled])
    for sequence in (probe, other):
        engine.free(sequence)
    return logits
