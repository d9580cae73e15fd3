"""The llama.cpp engine keeps the cache's cells in step with the scheduler's blocks. A cache that checks every token
stands in for llama.cpp."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.models import GREEDY
from workers.engines.llamacpp.engine import LlamaEngine
from workers.engines.scripted import ScriptedTokenizer
from workers.protocols import Defaults, OutOfMemory
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sequence

VOCABULARY = 50
Int32s = npt.NDArray[np.int32]


class CheckedCache:
    """Cells that each hold a token at a position, for a set of ids. The logits of a token depend on all tokens before
    it, as those of a model do."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.of: dict[int, dict[int, list[int]]] = {}  # by id and position: a cell, which is a list of its token
        self.decoded = 0
        self.restored = 0

    @property
    def used(self) -> int:
        return len({id(cell) for held in self.of.values() for cell in held.values()})

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        assert stop > start
        for at in range(start, stop):
            self.of.setdefault(target, {})[at] = self.of[source][at]

    def save(self, id_: int) -> dict[int, int]:
        return {at: cell[0] for at, cell in self.of[id_].items()}

    def restore(self, saved: dict[int, int], id_: int) -> bool:
        assert not self.of.get(id_)
        if self.used + len(saved) > self.cells:
            return False
        self.of[id_] = {at: [token] for at, token in saved.items()}
        self.restored += 1
        return True

    def remove(self, id_: int, start: int, stop: int | None) -> None:
        held = self.of.get(id_, {})
        for at in [at for at in held if start <= at and (stop is None or at < stop)]:
            del held[at]

    def decode(
        self, tokens: Int32s, positions: Int32s, ids: Int32s, wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        if self.used + len(tokens) > self.cells:
            raise OutOfMemory("no cell is empty")
        logits = []
        for token, position, id_, keep in zip(tokens.tolist(), positions.tolist(), ids.tolist(), wanted, strict=True):
            held = self.of.setdefault(id_, {})
            assert sorted(held) == list(range(position)), "a token before this one is missing, or one after it is there"
            held[position] = [token]
            self.decoded += 1
            if keep:
                logits.append(row_after([held[at][0] for at in range(position + 1)]))
        return np.array(logits, np.float32).reshape(len(logits), VOCABULARY)


def row_after(known: list[int]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(hash(tuple(known)) % 2**32).standard_normal(VOCABULARY).astype(np.float32)


def answer(prompt: list[int], tokens: int) -> list[int]:
    known = list(prompt)
    for _ in range(tokens):
        known.append(int(row_after(known).argmax()))
    return known[len(prompt) :]


def engine_of(cache: CheckedCache, *, saved_tokens_max: int = 2000, **limits: Any) -> LlamaEngine:
    given: dict[str, Any] = {
        "sequences_max": 6,
        "batch_tokens_max": 40,
        "context_length": 200,
        "vocabulary": VOCABULARY,
    } | limits
    return LlamaEngine(
        cache,
        ScriptedTokenizer(),
        limits=EngineLimits(**given),
        defaults=Defaults(),
        step_tokens_max=given["batch_tokens_max"],
        saved_tokens_max=saved_tokens_max,
    )


def run(
    engine: LlamaEngine, sequences: list[Sequence], tokens: int, before_step: Callable[[Scheduler], None] | None = None
) -> Scheduler:
    scheduler = Scheduler(engine.limits)
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.busy:
        if before_step:
            before_step(scheduler)
        batch = scheduler.next_batch()
        for sequence in batch.preempted:
            engine.free(sequence)
        for sequence, _ in scheduler.apply(batch, engine.step(batch)):
            if sequence.output_length == tokens:
                scheduler.drop(sequence)
                engine.free(sequence)
    return scheduler


def sequence(prompt: list[int], job: int = 0) -> Sequence:
    return Sequence(job_id=str(job), choice=0, prompt=prompt, sampling=GREEDY)


def random_prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Prompts of which many begin alike."""
    beginnings = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 90))] for _ in range(4)]
    return [
        [*rng.choice(beginnings), *(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20)))] for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_every_answer_is_what_it_would_be_alone_and_no_cell_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    blocks = rng.choice([14, 20, 40, 100])
    cache = CheckedCache(blocks * BLOCK_SIZE)
    saved = rng.choice([0, 48, 200, 2000])
    engine = engine_of(cache, saved_tokens_max=saved, blocks=blocks, idle_blocks_max=rng.choice([0, 3, blocks]))
    prompts = random_prompts(rng, 40)
    sequences = [sequence(prompt, job) for job, prompt in enumerate(prompts)]

    def sometimes_cancel(scheduler: Scheduler) -> None:
        if rng.random() < 0.03:
            gone = rng.choice(sequences)
            scheduler.drop(gone)
            engine.free(gone)

    run(engine, sequences, 20, sometimes_cancel)

    for prompt, each in zip(prompts, sequences, strict=True):
        assert each.output == answer(prompt, each.output_length)
    assert sum(each.output_length == 20 for each in sequences) > 20
    assert cache.used == 0


def test_a_prompt_that_begins_like_another_is_not_computed_again() -> None:
    cache = CheckedCache(1000)
    engine = engine_of(cache)
    prompt = list(range(40)) + list(range(8))
    first, second = sequence(prompt), sequence([*prompt[:36], 7, 7, 7])
    scheduler = run(engine, [first], 4)
    cache.decoded = 0

    scheduler.add(second)
    batch = scheduler.next_batch()
    scheduler.apply(batch, engine.step(batch))

    assert second.cached_tokens == 32
    assert cache.decoded == second.prompt_length - 32
    assert second.output == answer([*prompt[:36], 7, 7, 7], 1)


def test_what_was_forgotten_is_computed_again() -> None:
    cache = CheckedCache(1000)
    engine = engine_of(cache, saved_tokens_max=64)
    prompt = list(range(45))
    scheduler = run(engine, [sequence(prompt)], 4)
    run_over(scheduler, engine, [sequence([at] * 20, at) for at in range(1, 9)])  # more than main memory keeps
    again = sequence(prompt, 99)

    run_over(scheduler, engine, [again])

    assert again.cached_tokens == 32
    assert again.output == answer(prompt, 4)


def run_over(scheduler: Scheduler, engine: LlamaEngine, sequences: list[Sequence]) -> None:
    for each in sequences:
        scheduler.add(each)
    while scheduler.busy:
        batch = scheduler.next_batch()
        for each, _ in scheduler.apply(batch, engine.step(batch)):
            if each.output_length == 4:
                scheduler.drop(each)
                engine.free(each)


def test_a_sequence_that_is_freed_leaves_no_cell_in_use() -> None:
    cache = CheckedCache(1000)
    engine = engine_of(cache)
    each = sequence(list(range(40)))

    run(engine, [each], 5)

    assert cache.used == 0
    engine.free(each)
    assert cache.used == 0


def test_what_is_saved_is_restored_once_and_then_shared() -> None:
    cache = CheckedCache(4 * BLOCK_SIZE)  # one sequence of 33 tokens, and what a second one adds to it
    engine = engine_of(cache, blocks=5)
    prompt = list(range(33))
    scheduler = run(engine, [sequence(prompt)], 4)
    cache.decoded = 0
    again = [sequence(prompt, job) for job in (1, 2)]

    run_over(scheduler, engine, again)

    assert cache.restored == 1
    assert cache.decoded == 2 * 4
    assert [each.output for each in again] == [answer(prompt, 4)] * 2


def test_a_longer_copy_takes_the_place_of_the_one_that_it_continues() -> None:
    cache = CheckedCache(1000)
    engine = engine_of(cache, saved_tokens_max=80)
    first, other = list(range(33)), [7] * 17
    scheduler = run(engine, [sequence(other)], 4)
    run_over(scheduler, engine, [sequence(first, 1)])
    second = [*first, *answer(first, 4), 9, 9, 9, *range(20)]
    run_over(scheduler, engine, [sequence(second, 2)])  # 48 tokens, which would be too many beside 16 and 32
    cache.decoded = 0

    run_over(scheduler, engine, [sequence(other, 3), sequence(second, 4)])

    assert cache.decoded == len(other) - 16 + 3 + len(second) - 48 + 3


def test_without_a_prefix_cache_nothing_is_saved() -> None:
    cache = CheckedCache(1000)
    cache.save = None  # type: ignore[assignment, method-assign]
    engine = engine_of(cache, prefix_cache=False)

    run(engine, [sequence(list(range(40)))], 5)

    assert cache.used == 0


def test_a_sequence_that_does_not_fit_alone_is_out_of_memory() -> None:
    engine = engine_of(CheckedCache(30), blocks=20)

    with pytest.raises(OutOfMemory):
        run(engine, [sequence([3] * 40)], 5)
