"""Output tokens per CPU second of the torch engine, against transformers' own ways to serve the same requests.
`python -m bench.engine --size 25m`

All run in this process on the same random Llama and the same prompts, greedy, to a fixed length; rounds alternate.
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch

from bench.models import SIZES, VOCABULARY, make_model
from workers.engine import attention
from workers.engine.base import Defaults
from workers.engine.batched import BatchedEngine
from workers.engine.kv_cache import KVCache
from workers.engine.packed import pack
from workers.engine.scripted import ScriptedTokenizer
from workers.limits import Limits
from workers.offline import run
from workers.sequence import Choosing, Sequence

GREEDY = Choosing(seed=0, temperature=0, top_p=1, top_k=0)
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
    """Left-padded, as transformers wants it."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask, eos_token_id=None, **fixed)


def continuous(engine: BatchedEngine, prompts: list[list[int]], tokens: int) -> int:
    sequences = [Sequence(job_id="", choice=0, prompt=prompt, choosing=GREEDY) for prompt in prompts]
    run(engine, sequences, lambda sequence, _: sequence.made == tokens)
    return len(prompts) * tokens


def engine_of(model: Any, sequences: int, *, packed: bool) -> BatchedEngine:
    if packed:
        pack(model, rows=sequences)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    limits = Limits(
        sequences_max=sequences, batch_tokens_max=512, context_length=1024, vocabulary=10**6, prefix_cache=False
    )
    cache = KVCache(blocks=limits.blocks)
    return BatchedEngine(model, ScriptedTokenizer(), limits=limits, defaults=Defaults(), cache=cache)


def tokens_per_cpu_s(way: Way) -> float:
    began = time.process_time()
    made = way()
    return made / (time.process_time() - began)


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="25m", show_default=True)
@click.option("--requests", default=32, show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(size: str, requests: int, tokens: int, rounds: int) -> None:
    """Measure and print the table."""
    model = make_model(size)
    prompts = make_prompts(requests, VOCABULARY)
    plain, packed = (engine_of(make_model(size), requests, packed=each) for each in (False, True))
    ways: dict[str, Way] = {
        "`generate`, one request after another": lambda: per_request(model, prompts, tokens),
        "`generate`, one padded batch": lambda: static_batch(model, prompts, tokens),
        "Penstock, weights as loaded": lambda: continuous(plain, prompts, tokens),
        "Penstock": lambda: continuous(packed, prompts, tokens),
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            figures[name].append(tokens_per_cpu_s(way))
    base = statistics.median(figures["`generate`, one request after another"])
    print(f"| {size}, {requests} requests of {tokens} tokens | tokens per CPU second | ratio |\n|---|---|---|")
    for name, values in figures.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.0f} [{min(values):.0f}-{max(values):.0f}] | {middle / base:.1f} |")


if __name__ == "__main__":
    main()
