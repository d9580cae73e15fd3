"""Compares the torch engine with transformers' own ways to serve the same requests. `python -m bench.engine --size 25m`

All run in this process on the same random Llama and the same prompts, greedily, to a fixed length; rounds alternate.
Many requests are measured per CPU second, a single request by the clock.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.models import SIZES, VOCABULARY, make_model
from workers.engines.native.causal.batched import BatchedEngine
from workers.engines.native.kernels import attention
from workers.engines.native.kernels.kv_cache import KVCache
from workers.engines.native.weights.onednn_linear import pack
from workers.engines.offline import compute_all
from workers.engines.scripted import ScriptedTokenizer
from workers.process.host_memory import wait_until_fetched
from workers.protocols import Defaults
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.sequence import SamplingParams, Sequence

GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
Way = Callable[[], int]


def make_prompts(count: int, vocabulary: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(4, vocabulary) for _ in range(rng.randint(16, 112))] for _ in range(count)]


def per_request(model: Any, prompts: list[list[int]], tokens: int) -> int:
    for prompt in prompts:
        _generate(model, [prompt], tokens)
    return len(prompts) * tokens


def static_batch(model: Any, prompts: list[list[int]], tokens: int) -> int:
    _generate(model, prompts, tokens)
    return len(prompts) * tokens


def _generate(model: Any, prompts: list[list[int]], tokens: int) -> None:
    """Generate for one batch, left-padded as transformers requires."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask, eos_token_id=None, **fixed)


def continuous_batching(model: Any, prompts: list[list[int]], tokens: int) -> int:
    """Run transformers' continuous batching. It replaces the attention of `model`, so nothing else may use it."""
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=2)
    cache = ContinuousBatchingConfig(num_blocks=512, page_size=32, max_batch_tokens=512)
    done = model.generate_batch(prompts, generation_config=config, continuous_batching_config=cache)
    return sum(len(each.generated_tokens) for each in done.values())


def continuous(engine: BatchedEngine, prompts: list[list[int]], tokens: int) -> int:
    sequences = [Sequence(job_id="", choice=0, prompt=prompt, sampling=GREEDY) for prompt in prompts]
    compute_all(engine, sequences, lambda sequence, _: sequence.output_length == tokens)
    return len(prompts) * tokens


def engine_of(model: Any, sequences: int, *, packed: bool) -> BatchedEngine:
    if packed:
        pack(model, rows=sequences)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    limits = EngineLimits(
        sequences_max=sequences, batch_tokens_max=512, context_length=1024, vocabulary=10**6, prefix_cache=False
    )
    heads = model.config.num_attention_heads
    sample = torch.zeros(1, heads, 1, model.config.hidden_size // heads)
    cache = KVCache(blocks=limits.blocks)
    for layer in range(model.config.num_hidden_layers):
        cache.layer(layer, sample, sample)
    wait_until_fetched()
    kernel = attention.kernels(model.device, model.dtype)[0]
    return BatchedEngine(model, ScriptedTokenizer(), limits=limits, defaults=Defaults(), cache=cache, kernel=kernel)


def compare(title: str, ways: dict[str, Way], clock: Callable[[], float], rounds: int) -> dict[str, list[float]]:
    """Print the table of tokens/s and of the ratio to the first way. Return every round's tokens/s."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            made = way()
            if number:  # the first round warms up
                figures[name].append(made / (clock() - began))
    base = statistics.median(next(iter(figures.values())))
    print(f"\n| {title} | tokens/s | ratio |\n|---|---|---|")
    for name, values in figures.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.0f} [{min(values):.0f}-{max(values):.0f}] | {middle / base:.1f} |")
    return figures


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="25m", show_default=True)
@click.option("--requests", default=32, show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write every round to this file, as JSON.")
def main(size: str, requests: int, tokens: int, rounds: int, out: Path | None) -> None:
    """Measure and print both tables."""
    model, batching = make_model(size), make_model(size)
    prompts = make_prompts(requests, VOCABULARY)
    plain, packed = (engine_of(make_model(size), requests, packed=each) for each in (False, True))
    many: dict[str, Way] = {
        "`generate`, one request after another": lambda: per_request(model, prompts, tokens),
        "`generate`, one padded batch": lambda: static_batch(model, prompts, tokens),
        "`generate_batch`, continuous batching": lambda: continuous_batching(batching, prompts, tokens),
        "Penstock, weights as loaded": lambda: continuous(plain, prompts, tokens),
        "Penstock": lambda: continuous(packed, prompts, tokens),
    }
    titles = (f"{size}, {requests} requests of {tokens} tokens, per CPU second", f"{size}, one request, by the clock")
    figures = {titles[0]: compare(titles[0], many, time.process_time, rounds)}
    one: dict[str, Way] = {
        "`generate`": lambda: per_request(model, prompts[:1], tokens),
        "Penstock": lambda: continuous(packed, prompts[:1], tokens),
    }
    figures[titles[1]] = compare(titles[1], one, time.perf_counter, rounds)
    if out:
        out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
