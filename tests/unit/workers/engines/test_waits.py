"""A step waits for its device once, when the chosen tokens come back: each other wait would leave the device idle."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared.settings import load_settings
from tests.models import GREEDY, prompts, random_model, sequence
from workers.engines.native.kernels import attention
from workers.engines.native.loader import load_torch_engine
from workers.scheduling.scheduler import Scheduler

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
