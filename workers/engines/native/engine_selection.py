"""The selection of an engine for a causal model: the first in a table whose condition holds, by measurement.

| engine                        | condition                                                                          |
|-------------------------------|------------------------------------------------------------------------------------|
| batched, with packed weights  | batched holds, oneDNN can pack the weights, and the logits still agree             |
| batched, with a kernel        | the logits agree with the model's own; in deterministic mode, a batch keeps bits   |
| stepwise, with a cache        | the logits agree, and deterministic mode is off                                    |
| stepwise, without a cache     | always: every token is computed from all that came before it                       |

"Agree" is `agreement.disagreement`. Kernels are tried from the fastest on. Under torchrun only batched engines serve.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.cache_size import fitted
from workers.engines.native.agreement import TextEngine, disagreement, keeps_bits, own_logits
from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.causal.stepwise import StepwiseEngine
from workers.engines.native.device_limits import GIB, cache_room
from workers.engines.native.embedding.embedder import EmbedderTrials
from workers.engines.native.embedding.pooling import MEAN
from workers.engines.native.kernels import attention
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.kernels.step_layout import Kernel
from workers.engines.native.torch_errors import translated
from workers.engines.native.weights.onednn_linear import can_pack, pack, unpack
from workers.engines.native.weights.parallel import least, require_one, tell
from workers.process.ranks import rank, world
from workers.protocols import Defaults, OutOfMemory
from workers.scheduling.engine_limits import EngineLimits
from workers.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
TRIAL_BLOCKS = 8


def engine_for(
    model: Any, tokenizer: Tokenizer, limits: EngineLimits, defaults: Defaults, settings: Settings
) -> TextEngine:
    """`model`: a causal LM of transformers, in the attention that it was loaded with. Raises SettingsError if the
    memory holds no cache, or if a model that cannot be batched is to serve under torchrun."""
    candidates = _Candidates(model, tokenizer, limits, defaults, deterministic=settings.deterministic)
    own_attention, expected = model.config._attn_implementation, own_logits(model)
    embedders = EmbedderTrials(model.base_model, MEAN, tokens_max=limits.context_length)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    trial, reason = candidates.try_batched(expected)
    require_one("MODEL: a model that cannot be batched", reason)
    if not reason:
        fitting = fitted(limits, trial.cache.bytes_per_block, least(cache_room(trial, settings)))
        cache = _cache(fitting, trial)
        batched = candidates.batched(fitting, cache, trial.kernel)
        batched.embedder = embedders.packed() if world() == 1 else None
        batched.tell = tell if world() > 1 and rank() == 0 else None
        return batched
    log.warning("this model is not batched; it runs stepwise", extra={"reason": reason})
    model.set_attn_implementation(own_attention)
    stepwise = candidates.try_stepwise(expected)
    stepwise.embedder = embedders.own
    return stepwise


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The engines that could serve the model."""

    model: Any
    tokenizer: Tokenizer
    limits: EngineLimits
    defaults: Defaults
    deterministic: bool

    def try_batched(self, expected: torch.Tensor) -> tuple[BatchedEngine, str]:
        """A batched engine of few blocks, and why it may not serve; empty if it may. Weights that may be packed are
        packed."""
        limits = replace(self.limits, blocks=TRIAL_BLOCKS)
        for kernel in attention.kernels(self.model.device, self.model.dtype):
            trial = self.batched(limits, KVCache(blocks=TRIAL_BLOCKS), kernel)
            if not (reason := disagreement(trial, expected)):
                break
            log.warning("a kernel cannot be used", extra={"kernel": kernel.name, "reason": reason})
        if not reason and can_pack(self.model):
            replaced = pack(self.model, rows=limits.sequences_max)
            if loss := disagreement(trial, expected):
                log.warning("weights stay as loaded", extra={"reason": loss})
                unpack(replaced)
        if not reason and self.deterministic and not keeps_bits(trial):
            reason = "a batch changes the last bits of its results, and deterministic mode is asked for"
        return trial, reason

    def try_stepwise(self, expected: torch.Tensor) -> StepwiseEngine:
        """A stepwise engine with the model's own cache, or without it if the logits then disagree."""
        if self.deterministic:
            return self._stepwise(cached=False)
        engine = self._stepwise(cached=True)
        if reason := disagreement(engine, expected):
            log.warning("the model's cache cannot be used; every token is computed anew", extra={"reason": reason})
            return self._stepwise(cached=False)
        return engine

    def batched(self, limits: EngineLimits, cache: KVCache, kernel: Kernel) -> BatchedEngine:
        return BatchedEngine(
            self.model,
            self.tokenizer,
            limits=limits,
            defaults=self.defaults,
            cache=cache,
            kernel=kernel,
            deterministic=self.deterministic,
        )

    def _stepwise(self, *, cached: bool) -> StepwiseEngine:
        limits = replace(self.limits, prefix_cache=False)
        return StepwiseEngine(self.model, self.tokenizer, limits=limits, defaults=self.defaults, cached=cached)


def _cache(limits: EngineLimits, trial: BatchedEngine) -> KVCache:
    """The KV cache, in the shapes that a trial has shown. Raises SettingsError if the device has no room for it."""
    try:
        with translated():
            return KVCache(blocks=limits.blocks, like=trial.cache)
    except OutOfMemory as error:
        size = limits.blocks * trial.cache.bytes_per_block / GIB
        message = f"PENSTOCK_KV_CACHE_GIB: there is no memory for {size:.1f} GiB of key-value cache ({error})"
        raise SettingsError(message) from error
