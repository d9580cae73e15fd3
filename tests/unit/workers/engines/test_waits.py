"""A step waits for its device once, when the chosen tokens come back: each other wait would leave the device idle."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from shared.settings import load_settings
from tests.models import GREEDY, prompts, random_model, sequence
from workers.engines.native.causal.sampler import CANDIDATES, choose
from workers.engines.native.kernels import attention
from workers.engines.native.loader import load_torch_engine
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import SamplingParams

READS = {"tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal"}
WAITS = {"aten::is_nonzero", "aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}


class Operations(TorchDispatchMode):
    """Counts the operations by name, and keeps the number of elements of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names[func.name().partition(".")[0]] += 1
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("kernel", ["numba", "gather"])
def test_the_model_computes_a_step_without_waiting(tmp_path: Path, kernel: str) -> None:
    random_model(tmp_path, "MistralConfig", {"sliding_window": 16})
    engine: Any = load_torch_engine(str(tmp_path), load_settings(batch_tokens_max=24))
    engine.kernel = next(each for each in attention.kernels(torch.device("cpu"), torch.float32) if each.name == kernel)
    scheduler = Scheduler(engine.limits)
    for prompt in prompts():
        scheduler.add(sequence(prompt))

    while scheduler.busy:
        batch = scheduler.next_batch()
        with Operations() as operations:
            engine.logits(batch)
        assert not WAITS & operations.names.keys()
        for each, _ in scheduler.apply(batch, engine.step(batch)):
            if each.output_length == 3:
                scheduler.drop(each)


def test_a_chunk_far_into_its_prompt_keeps_no_scores_and_one_mask(tmp_path: Path) -> None:
    random_model(tmp_path, "LlamaConfig", {"max_position_embeddings": 2048, "num_hidden_layers": 4})
    engine: Any = load_torch_engine(str(tmp_path), load_settings(batch_tokens_max=256))
    scheduler = Scheduler(engine.limits)
    scheduler.add(sequence([3 + at % 290 for at in range(2000)], GREEDY))
    for _ in range(7):
        batch = scheduler.next_batch()
        scheduler.apply(batch, engine.step(batch))

    batch = scheduler.next_batch()
    with Operations() as operations:
        engine.logits(batch)

    (row,) = batch.rows
    assert (row.start, row.count) == (1792, 208)
    heads = engine.model.config.num_attention_heads
    assert operations.largest < heads * row.count * (row.start + row.count)
    assert operations.names["aten::masked_fill_"] == 1


class Calls(TorchFunctionMode):
    """Counts the calls of torch's functions and methods by name; `copied` names those that are given numbers of Python,
    which torch copies to the device while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.copied: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        self.names[name] += 1
        flat = [part for each in args for part in (each if isinstance(each, tuple) else [each])]
        if func is torch.tensor or (name in ("__getitem__", "__setitem__") and any(isinstance(x, list) for x in flat)):
            self.copied.append(name)
        return func(*args, **(kwargs or {}))


EVERYTHING = [
    SamplingParams(seed=1, temperature=0, top_p=1, top_k=0, logprobs=3, repetition_penalty=1.2),
    SamplingParams(seed=2, temperature=0.8, top_p=1, top_k=0, min_p=0.01, logit_bias=((5, 2.0),)),
    SamplingParams(seed=3, temperature=0.8, top_p=0.5, top_k=0, logprobs=0, presence_penalty=0.5),
    SamplingParams(seed=4, temperature=1, top_p=0.9, top_k=40, min_tokens=9, banned=frozenset({2})),
]


def test_tokens_are_chosen_with_one_wait_whatever_their_requests_ask_for() -> None:
    logits = 4 * torch.randn(4, 5000, generator=torch.Generator().manual_seed(1))
    sequences = [sequence([3, 4, 5], sampling, output=[7]) for sampling in EVERYTHING]

    with Calls() as calls:
        choose(logits, sequences)

    assert {name: count for name, count in calls.names.items() if name in READS} == {"tolist": 1}
    assert calls.copied == []


def test_only_a_row_that_needs_more_than_the_candidates_costs_a_second_wait() -> None:
    flat = [sequence([3], SamplingParams(seed=1, temperature=1, top_p=0.99, top_k=0)), sequence([3])]

    with Calls() as calls:
        choose(torch.zeros(2, 3 * CANDIDATES), flat)

    assert calls.names["tolist"] == 2
