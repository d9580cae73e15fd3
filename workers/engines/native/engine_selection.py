"""Which engine serves a loaded model: one that computes what the model's own code computes. Measured, not listed."""

import logging
from dataclasses import replace
from typing import Any

import torch

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.base import Defaults
from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.causal.stepwise import StepwiseEngine
from workers.engines.native.embedding.embedder import EmbedderTrials
from workers.engines.native.embedding.pooling import MEAN
from workers.engines.native.kernels import attention
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Kernel
from workers.engines.native.weights.onednn_linear import can_pack, pack, unpack
from workers.engines.native.weights.parallel import least, require_one
from workers.process.host_memory import memory_available
from workers.process.ranks import world
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sampled, SamplingParams, Sequence
from workers.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
TOLERANCE = 0.05  # of the logits' standard deviation: half precision rounds, a wrong mask does not hide
QUANTISED_TOLERANCE = 0.25  # some round what they multiply by what else is in the batch
GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
ACCELERATOR_SHARE = 0.85  # of the free memory, for the cache; the rest is for what a step computes
CPU_SHARE = 0.4
TRIAL_BLOCKS = 8
TextEngine = BatchedEngine | StepwiseEngine


def engine_for(
    model: Any, tokenizer: Tokenizer, limits: EngineLimits, defaults: Defaults, settings: Settings
) -> TextEngine:
    """Batched if the batch computes what the model's own code computes, else stepwise; with packed weights likewise."""
    own = model.config._attn_implementation
    expected = _own_logits(model, _probe(model))
    trials = EmbedderTrials(model.base_model, MEAN, tokens_max=limits.context_length)
    attention.register()
    model.set_attn_implementation(attention.NAME)

    def batched(limits: EngineLimits, cache: KVCache, kernel: Kernel) -> BatchedEngine:
        exact = settings.deterministic
        return BatchedEngine(
            model, tokenizer, limits=limits, defaults=defaults, cache=cache, kernel=kernel, deterministic=exact
        )

    for kernel in attention.kernels(model.device, model.dtype):
        trial = batched(replace(limits, blocks=TRIAL_BLOCKS), KVCache(blocks=TRIAL_BLOCKS), kernel)
        if not (reason := _differs(trial, expected)):
            break
        log.warning("a kernel cannot be used", extra={"kernel": kernel.name, "reason": reason})
    if not reason and can_pack(model):
        replaced = pack(model, rows=limits.sequences_max)
        if loss := _differs(trial, expected):
            log.warning("weights stay as loaded", extra={"reason": loss})
            unpack(replaced)
    if not reason and settings.deterministic and not _keeps_bits(trial):
        reason = "a batch changes the last bits of its results, and deterministic mode is asked for"
    require_one("MODEL: a model that cannot be batched", reason)
    if reason:
        log.warning("this model is not batched; it runs stepwise", extra={"reason": reason})
        model.set_attn_implementation(own)
        limits = replace(limits, prefix_cache=False)
        stepwise = StepwiseEngine(model, tokenizer, limits=limits, defaults=defaults, cached=not settings.deterministic)
        stepwise = stepwise if settings.deterministic else _remembering(stepwise, expected)
        stepwise.embedder = trials.own
        return stepwise
    limits = fitted(limits, trial.cache.bytes_per_block, least(_room(model.device, settings)))
    engine = batched(limits, KVCache(blocks=limits.blocks, like=trial.cache), trial.kernel)
    engine.embedder = trials.packed() if world() == 1 else None
    return engine


def _remembering(engine: StepwiseEngine, expected: torch.Tensor) -> StepwiseEngine:
    """The same, or one that computes every token anew when the model's own cache does not remember all it should."""
    reason = _differs(engine, expected)
    if not reason:
        return engine
    log.warning("the model's cache cannot be used; every token is computed anew", extra={"reason": reason})
    limits, defaults = engine.limits, engine.defaults
    return StepwiseEngine(engine.model, engine.tokenizer, limits=limits, defaults=defaults, cached=False)


def _keeps_bits(engine: BatchedEngine) -> bool:
    """Whether a sequence's logits are the same to the last bit alone and beside another one, whole and in chunks.
    Only the CPU's float32 kernels are built for that; elsewhere few tokens would prove nothing."""
    model, ids = engine.model, _probe(engine.model)
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        return False
    scheduler = Scheduler(replace(engine.limits, batch_tokens_max=len(ids)))
    scheduler.add(Sequence(job_id="alone", choice=0, prompt=ids, sampling=GREEDY))
    return torch.equal(engine.logits(scheduler.next_batch())[0], _logits_of(engine, ids))


def _room(device: torch.device, settings: Settings) -> int:
    """Bytes that the key-value cache may take: what was set, or a part of what is free now. On an accelerator nothing
    else wants the rest; on a CPU other programs do."""
    if settings.kv_cache_gib:
        return int(settings.kv_cache_gib * 2**30)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * ACCELERATOR_SHARE)
    return int(memory_available() * CPU_SHARE)


def fitted(limits: EngineLimits, bytes_per_block: int, room: int) -> EngineLimits:
    """With as many blocks as the sequences can use and the room holds, and a context that fits into them."""
    blocks = min(limits.blocks, room // bytes_per_block)
    if not blocks:
        raise SettingsError("PENSTOCK_KV_CACHE_GIB: there is no memory for the key-value cache of a single token")
    context = min(limits.context_length, blocks * BLOCK_SIZE)
    if context < limits.context_length:
        log.warning("the key-value cache is small: shorter contexts", extra={"context_length": context})
    return replace(limits, blocks=blocks, context_length=context)


def _differs(engine: TextEngine, expected: torch.Tensor) -> str:
    """Why the engine's logits are not the expected ones; empty when they are."""
    try:
        difference = (_logits_of(engine, _probe(engine.model)) - expected).abs().max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code makes of replaced parts, it still runs without them
        return f"{type(error).__name__}: {error}"
    quantised = getattr(engine.model, "hf_quantizer", None) is not None
    allowed = (QUANTISED_TOLERANCE if quantised else TOLERANCE) * expected.std().item()
    return "" if difference < allowed else f"logits differ by {difference:.3g}, more than {allowed:.3g}"


def _probe(model: Any) -> list[int]:
    """Token ids of any vocabulary, more than a block."""
    return [1 + (7 * i + 3) % (model.config.get_text_config().vocab_size - 1) for i in range(20)]


@torch.inference_mode()
def _own_logits(model: Any, ids: list[int]) -> torch.Tensor:
    out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    last: torch.Tensor = out.logits[0, -1].float()
    return last


def _logits_of(engine: TextEngine, ids: list[int]) -> torch.Tensor:
    """The same by the ways a prompt and its answer really go: chunks, then single tokens, beside another sequence."""
    scheduler = Scheduler(replace(engine.limits, sequences_max=2, batch_tokens_max=8))
    probe = Sequence(job_id="probe", choice=0, prompt=ids[:15], sampling=GREEDY)
    other = Sequence(job_id="other", choice=0, prompt=ids[:3], sampling=GREEDY)
    scheduler.add(other)
    scheduler.add(probe)
    logits = torch.empty(0)
    while probe.computed < len(ids):
        batch = scheduler.next_batch()
        rows = engine.logits(batch)
        sampled = [row.sequence for row in batch.sampling]
        if probe in sampled:
            logits = rows[sampled.index(probe)]
        known = {probe: ids, other: ids}
        scheduler.apply(batch, [Sampled(known[s][min(s.length, len(ids) - 1)]) for s in sampled])
    for sequence in (probe, other):
        engine.free(sequence)
    return logits
