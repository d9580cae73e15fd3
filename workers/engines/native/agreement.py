"""Agreement of an engine with its model: measured, not listed. An engine may serve a model if it computes the logits
that the model's own code computes."""

from dataclasses import replace
from typing import Any

import torch

from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.causal.stepwise import StepwiseEngine
from workers.engines.native.torch_errors import translated
from workers.protocols import EngineBroken, OutOfMemory
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sampled, SamplingParams, Sequence

TOLERANCE = 0.05  # of the logits' standard deviation: it covers half precision, but no wrong mask
QUANTISED_TOLERANCE = 0.25  # some quantised weights round their inputs by what else is in the batch
GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
TextEngine = BatchedEngine | StepwiseEngine


@torch.inference_mode()
def own_logits(model: Any) -> torch.Tensor:
    """Logits [vocabulary] after the probe, by the model's own code without a cache."""
    ids = _probe(model)
    out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    last: torch.Tensor = out.logits[0, -1].float()
    return last


def disagreement(engine: TextEngine, expected: torch.Tensor) -> str:
    """The reason why the engine's logits are not the expected ones; empty if they are. Raises OutOfMemory and
    EngineBroken as a step does: after either, no other way to compute the model would show whether it works."""
    try:
        with translated():
            difference = (_logits_of(engine, _probe(engine.model)) - expected).abs().max().item()
    except (OutOfMemory, EngineBroken):
        raise
    except Exception as error:  # a model's own code may fail in any way on parts replaced, and still run without them
        return f"{type(error).__name__}: {error}"
    quantised = getattr(engine.model, "hf_quantizer", None) is not None
    allowed = (QUANTISED_TOLERANCE if quantised else TOLERANCE) * expected.std().item()
    return "" if difference < allowed else f"logits differ by {difference:.3g}, more than {allowed:.3g}"


def keeps_bits(engine: BatchedEngine) -> bool:
    """True if a sequence's logits are the same to the last bit alone and beside another one, whole and in chunks. Only
    the CPU's float32 kernels are built for that; elsewhere a probe of few tokens would prove nothing."""
    model, ids = engine.model, _probe(engine.model)
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        return False
    scheduler = Scheduler(replace(engine.limits, batch_tokens_max=len(ids)))
    scheduler.add(Sequence(job_id="alone", choice=0, prompt=ids, sampling=GREEDY))
    return torch.equal(engine.logits(scheduler.next_batch())[0], _logits_of(engine, ids))


def _probe(model: Any) -> list[int]:
    """Token ids of any vocabulary, more than a block."""
    return [1 + (7 * i + 3) % (model.config.get_text_config().vocab_size - 1) for i in range(20)]


def _logits_of(engine: TextEngine, ids: list[int]) -> torch.Tensor:
    """The engine's logits, computed as a prompt and its answer are: chunks, then single tokens, beside another
    sequence."""
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
