"""Measures a step of the torch engine, and the part of it that is not arithmetic. `python -m bench.steps --size 25m`

- the decode step at batch 1 and 32, against the time its bytes take at this machine's measured memory bandwidth;
- the share of a step that is Python and dispatch: the time of the same step with as many layers of next to no weights;
- the step with thousands of sequences waiting for a place;
- the time to the first token of 32 requests that arrive together and share 512 tokens, with and without prefix cache.
"""

import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.engine import GREEDY, engine_of
from bench.models import SIZES, VOCABULARY, make_model
from workers.engines.native.causal.batched import BatchedEngine
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sequence

CONTEXT = 128
STEPS = 40


def sequences(count: int, length: int, *, shared: int = 0) -> list[Sequence]:
    rng = random.Random(count)
    beginning = [rng.randrange(10, VOCABULARY) for _ in range(shared)]
    prompts = [beginning + [rng.randrange(10, VOCABULARY) for _ in range(length - shared)] for _ in range(count)]
    return [Sequence(job_id="", choice=0, prompt=prompt, sampling=GREEDY) for prompt in prompts]


def bandwidth_gb_s() -> float:
    """Measure the memory bandwidth of reading, by a sum over more numbers than the CPU's caches hold."""
    numbers = torch.ones(2**27)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.numel() * 4 / statistics.median(times) / 1e9


def decode_ms(engine: BatchedEngine, batch: int, waiting: int = 0) -> float:
    """Measure the median step in which `batch` sequences decode, with contexts of about CONTEXT tokens."""
    scheduler = Scheduler(replace(engine.limits, sequences_max=batch))
    for sequence in [*sequences(batch, CONTEXT), *sequences(waiting, 32)]:
        scheduler.add(sequence)
    times: list[float] = []
    while len(times) < STEPS:
        began = time.perf_counter()
        plan = scheduler.next_batch()
        scheduler.apply(plan, engine.step(plan))
        if all(row.decoding for row in plan.rows) and len(plan.rows) == batch:
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def bytes_moved(engine: BatchedEngine, size: str, batch: int) -> int:
    """Count the bytes that a step reads: the weights without the embedding table, and the KV cache of the contexts."""
    model = make_model(size)
    weights: int = model.num_parameters() - model.get_input_embeddings().weight.numel()
    cached = engine.cache.bytes_per_block // BLOCK_SIZE * (CONTEXT + STEPS // 2) * batch
    return weights * 4 + cached


def hollow(size: str) -> BatchedEngine:
    """Make a model with the same layers and hardly any weights in each."""
    layers = SIZES[size]["num_hidden_layers"]
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": VOCABULARY}
    return engine_of(LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **tiny)).eval(), 32, packed=True)


def first_token_ms(engine: BatchedEngine, *, prefix_cache: bool) -> float:
    """Measure the median TTFT of 32 requests that arrive at once and find an empty cache."""
    scheduler = Scheduler(replace(engine.limits, prefix_cache=prefix_cache))
    for sequence in sequences(32, 528, shared=512):
        scheduler.add(sequence)
    began = time.perf_counter()
    firsts: list[float] = []
    while len(firsts) < 32:
        plan = scheduler.next_batch()
        for sequence, _ in scheduler.apply(plan, engine.step(plan)):
            if sequence.output_length == 1:
                firsts.append(time.perf_counter() - began)
    return statistics.median(firsts) * 1000


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="25m", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file, as JSON.")
def main(size: str, rounds: int, out: Path | None) -> None:
    """Measure and print the tables."""
    figures: dict[str, float] = {}
    engine, empty, bandwidth = engine_of(make_model(size), 32, packed=True), hollow(size), bandwidth_gb_s()
    print(f"memory bandwidth {bandwidth:.1f} GB/s, {torch.get_num_threads()} threads\n")
    print("| batch | decode step, ms | its bytes alone, ms | Python and dispatch | 5,000 waiting, ms |")
    print("|---|---|---|---|---|")
    for batch in (1, 32):
        steps = [decode_ms(engine, batch) for _ in range(rounds)]
        crowded = [decode_ms(engine, batch, waiting=5000) for _ in range(rounds)]
        bare = statistics.median(decode_ms(empty, batch) for _ in range(rounds))
        step = statistics.median(steps)
        floor = bytes_moved(engine, size, batch) / bandwidth / 1e6
        figures |= {f"step {batch}, ms": step, f"bytes {batch}, ms": floor, f"Python {batch}, ms": bare}
        print(f"| {batch} | {step:.1f} | {floor:.1f} | {100 * bare / step:.0f} % | {statistics.median(crowded):.1f} |")
    print("\n| 512 of 528 tokens shared, 32 requests | time to first token, ms |\n|---|---|")
    for shared in (False, True):
        times = [first_token_ms(engine, prefix_cache=shared) for _ in range(rounds)]
        figures[f"first token, {'prefix cache' if shared else 'none'}, ms"] = statistics.median(times)
        print(f"| {'prefix cache' if shared else 'none'} | {statistics.median(times):.0f} |")
    if out:
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
