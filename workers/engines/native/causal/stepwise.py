"""The stepwise engine is for models that cannot share a step: it computes each sequence by itself, with transformers'
own code and cache. It is slower than the batched one, and `/v1/models` names it."""

from typing import Any

import torch

from workers.engines.native.causal.sampler import choose, score
from workers.engines.native.torch_errors import translated
from workers.engines.native.weights.lora import Adapters
from workers.protocols import Defaults, Embedder
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled, Sequence
from workers.text.tokenizer import Tokenizer

CACHES = ("past_key_values", "cache_params", "state")  # the names that models give their cache


class StepwiseEngine:
    kind = "stepwise"
    dtype = ""
    writes = True

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, limits: EngineLimits, defaults: Defaults, cached: bool = True
    ) -> None:
        """If not `cached`, every token is computed from all that came before it."""
        self.limits = limits
        self.defaults = defaults
        self.tokenizer = tokenizer
        self.model = model
        self.embedder: Embedder | None = None
        self.adapters = Adapters()
        self._cached = cached
        self._states: dict[Sequence, tuple[int, dict[str, Any]]] = {}  # tokens computed, and the cache that holds them

    def step(self, batch: Batch) -> list[Sampled]:
        with translated():
            return choose(self.logits(batch), [row.sequence for row in batch.sampling])

    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 [sampling rows, vocabulary]. A prompt is computed as a whole, when its last chunk is due: not every
        model can continue in the middle of a prompt."""
        rows = [self._compute(row.sequence) for row in batch.sampling]
        return torch.stack(rows) if rows else torch.empty(0)

    @torch.inference_mode()
    def _compute(self, sequence: Sequence) -> torch.Tensor:
        done, state = self._states.get(sequence, (0, {}))
        ids = torch.tensor([sequence.ids[done:].tolist()], device=self.model.device)
        with self.adapters.computing([sequence.adapter], [ids.shape[1]], self.model.device):
            out = self.model(input_ids=ids, use_cache=self._cached, **state)
        if self._cached:
            known = {name: out[name] for name in CACHES if out.get(name) is not None}
            self._states[sequence] = (sequence.length, known) if known else (0, {})
        if sequence.sampling.prompt_logprobs is not None and done == 0:
            score(out.logits[0], sequence, 0)
        last: torch.Tensor = out.logits[0, -1].float()
        return last

    def free(self, sequence: Sequence) -> None:
        self._states.pop(sequence, None)
