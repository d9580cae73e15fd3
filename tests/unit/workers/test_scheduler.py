"""The scheduler takes decode rows first, prompts in chunks under a budget, and newcomers at the next step."""

import random
from collections import Counter
from typing import Any

import pytest

from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits, blocks_for
from workers.scheduling.scheduler import Batch, Scheduler
from workers.scheduling.sequence import Sampled, SamplingParams, Sequence

GREEDY = SamplingParams(seed=0, temperature=0, top_p=1, top_k=0)
NINE = Sampled(9)


def make(**given: Any) -> Scheduler:
    return Scheduler(EngineLimits(**{"context_length": 1000, "vocabulary": 100, "batch_tokens_max": 100} | given))


def sequence(prompt: int, output: int = 0, *, first: int = 0, salt: bytes = b"", job: str = "j") -> Sequence:
    """A sequence of numbers that count up from `first`."""
    ids = list(range(first, first + prompt))
    return Sequence(job_id=job, choice=0, prompt=ids, sampling=GREEDY, output=list(range(output)), salt=salt)


def run(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Run one step with token 9 for every row; return (start, count) of each row."""
    batch = scheduler.next_batch()
    scheduler.apply(batch, [NINE] * len(batch.sampling))
    return [(row.start, row.count) for row in batch.rows]


def test_a_long_prompt_is_computed_in_chunks_while_others_decode() -> None:
    scheduler = make(sequences_max=4, batch_tokens_max=10)
    scheduler.add(sequence(4))
    run(scheduler)
    scheduler.add(sequence(25))

    steps = [run(scheduler) for _ in range(4)]

    assert steps == [[(4, 1), (0, 9)], [(5, 1), (9, 9)], [(6, 1), (18, 7)], [(7, 1), (25, 1)]]


def test_a_newcomer_joins_at_the_next_step_and_the_batch_is_bounded() -> None:
    scheduler = make(sequences_max=2, batch_tokens_max=100)
    first, second, third = sequence(3), sequence(3), sequence(3)
    for added in (first, second, third):
        scheduler.add(added)

    assert len(run(scheduler)) == 2
    scheduler.drop(first)

    assert run(scheduler) == [(3, 1), (0, 3)]
    assert scheduler.running == 2


def test_only_a_row_that_reaches_the_end_is_sampled() -> None:
    scheduler = make(sequences_max=2, batch_tokens_max=5)
    added = sequence(8)
    scheduler.add(added)

    first = scheduler.next_batch()
    assert first.sampling == []
    assert scheduler.apply(first, []) == []
    second = scheduler.next_batch()
    assert scheduler.apply(second, [Sampled(42)]) == [(added, Sampled(42))]
    assert added.output == [42]


def test_logged_output_is_prefilled_like_a_prompt_on_resume() -> None:
    scheduler = make(sequences_max=1, batch_tokens_max=100)
    resumed = sequence(3, output=4)
    scheduler.add(resumed)

    batch = scheduler.next_batch()

    assert [(row.start, row.count, row.decoding) for row in batch.rows] == [(0, 7, False)]
    assert resumed.ids.tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_dropping_twice_or_a_stranger_is_no_error() -> None:
    scheduler = make(sequences_max=1, batch_tokens_max=100)
    added = sequence(3)
    scheduler.add(added)
    scheduler.drop(added)

    scheduler.drop(added)
    scheduler.drop(sequence(1))

    assert not scheduler.busy


def started(batch: Batch) -> dict[Sequence, int]:
    return {row.sequence: row.start for row in batch.rows}


def step(scheduler: Scheduler) -> Batch:
    batch = scheduler.next_batch()
    scheduler.apply(batch, [NINE] * len(batch.sampling))
    return batch


def test_a_prompt_that_begins_like_an_earlier_one_starts_behind_what_they_share() -> None:
    scheduler = make(sequences_max=4)
    first = sequence(40)
    scheduler.add(first)
    step(scheduler)
    scheduler.drop(first)
    second, other = sequence(50), sequence(50, first=1)
    scheduler.add(second)
    scheduler.add(other)

    assert started(step(scheduler)) == {second: 32, other: 0}
    assert (first.cached_tokens, second.cached_tokens, other.cached_tokens) == (0, 32, 0)


def test_a_prompt_known_to_its_end_still_computes_its_last_token() -> None:
    scheduler = make(sequences_max=4)
    scheduler.add(sequence(32))
    step(scheduler)
    again = sequence(32)
    scheduler.add(again)

    assert started(step(scheduler))[again] == 16


def test_an_answer_is_shared_with_the_next_turn_of_its_conversation() -> None:
    scheduler = make(sequences_max=1)
    first = sequence(10)
    scheduler.add(first)
    for _ in range(30):
        step(scheduler)
    scheduler.drop(first)
    second = Sequence(job_id="k", choice=0, prompt=[*first.ids, 1, 2], sampling=GREEDY)
    scheduler.add(second)

    assert started(step(scheduler)) == {second: 32}


def test_tenants_share_nothing() -> None:
    scheduler = make(sequences_max=4)
    scheduler.add(sequence(40, salt=b"a"))
    step(scheduler)
    second = sequence(40, salt=b"b")
    scheduler.add(second)

    assert started(step(scheduler))[second] == 0


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    scheduler = make(sequences_max=4, batch_tokens_max=20)
    first, second, other = sequence(40), sequence(41), sequence(5, first=50)
    for each in (first, second, other):
        scheduler.add(each)

    rows = [started(step(scheduler)) for _ in range(4)]

    assert rows[0] == {first: 0}
    assert rows[1] == {first: 20}
    assert other in rows[2]
    assert rows[2][second] == 32


@pytest.mark.parametrize("how", ["drop", "retry", "shrink"])
def test_who_awaits_blocks_of_one_that_ends_computes_them_itself(how: str) -> None:
    scheduler = make(sequences_max=2, batch_tokens_max=20)
    first, second = sequence(60), sequence(60)
    scheduler.add(first)
    scheduler.add(second)
    failed = step(scheduler)

    scheduler.drop(first) if how == "drop" else getattr(scheduler, how)(failed)

    batches = [step(scheduler) for _ in range(8)]
    assert second in started(batches[-1])
    assert second.output


def test_without_the_prefix_cache_nothing_is_shared() -> None:
    scheduler = make(sequences_max=2, prefix_cache=False)
    first, second = sequence(40), sequence(40)
    scheduler.add(first)
    scheduler.add(second)

    assert started(step(scheduler)) == {first: 0, second: 0}


def test_a_sequence_waits_until_there_are_blocks_for_it_and_later_ones_do_not_pass() -> None:
    scheduler = make(sequences_max=4, blocks=6, context_length=96)
    running, large, small = sequence(50), sequence(50, first=1), sequence(3, first=2)
    for each in (running, large, small):
        scheduler.add(each)

    assert set(started(step(scheduler))) == {running}
    assert scheduler.waiting == 2
    scheduler.drop(running)
    assert set(started(step(scheduler))) == {large, small}


def test_the_latest_arrival_makes_room_and_loses_nothing() -> None:
    scheduler = make(sequences_max=4, blocks=8, context_length=128, prefix_cache=False)
    first, second = sequence(40), sequence(40, first=1)
    scheduler.add(first)
    scheduler.add(second)
    preempted: list[Sequence] = []
    while len(first.output) < 60:
        batch = step(scheduler)
        assert first in started(batch)
        preempted += batch.preempted
    assert preempted == [second]
    said = list(second.output)
    assert (second.computed, len(second.blocks)) == (0, 0)

    scheduler.drop(first)
    [row] = step(scheduler).rows

    assert (row.sequence, row.start, row.count) == (second, 0, 40 + len(said))
    assert second.output == [*said, 9]


def places(scheduler: Scheduler) -> Counter[str]:
    return Counter(each.job_id for each in scheduler._running)


def test_a_job_of_many_sequences_leaves_a_place_to_each_other_job_and_fills_the_batch_alone() -> None:
    scheduler = make(sequences_max=8)
    wide = [sequence(5, first=10 * n, job="wide") for n in range(20)]
    for each in wide:
        scheduler.add(each)
    run(scheduler)
    assert places(scheduler) == {"wide": 8}

    chats = [sequence(5, first=500 + 10 * n, job=f"chat {n}") for n in range(3)]
    for each in chats:
        scheduler.add(each)
    assert scheduler.jobs_waiting == 3
    batch = scheduler.next_batch()

    assert batch.preempted == [wide[7], wide[6], wide[5]]
    assert places(scheduler) == {"wide": 5, "chat 0": 1, "chat 1": 1, "chat 2": 1}
    assert scheduler.jobs_waiting == 0
    scheduler.apply(batch, [NINE] * len(batch.sampling))
    scheduler.drop(chats[0])
    run(scheduler)
    assert places(scheduler) == {"wide": 6, "chat 1": 1, "chat 2": 1}
    assert wide[5].computed == wide[5].length - 1  # of the preempted sequences, the first one resumes first


def test_jobs_of_many_sequences_share_the_batch_and_the_step_evenly() -> None:
    scheduler = make(sequences_max=8, batch_tokens_max=40)
    for job in ("first", "second"):
        for n in range(10):
            scheduler.add(sequence(30, first=100 * n + (50 if job == "first" else 0), job=job))
        batch = scheduler.next_batch()

    assert places(scheduler) == {"first": 4, "second": 4}
    assert [row.sequence.job_id for row in batch.rows] == ["first", "second"]


def test_nobody_makes_room_where_all_of_it_would_not_be_enough() -> None:
    scheduler = make(sequences_max=8, blocks=30, context_length=400)
    for n in range(4):
        scheduler.add(sequence(40, first=50 * n, job="wide"))
    scheduler.add(sequence(200, first=300, job="large"))
    run(scheduler)
    scheduler.add(sequence(320, first=600, job="too large for now"))

    batch = scheduler.next_batch()

    assert not batch.preempted
    assert places(scheduler) == {"wide": 4, "large": 1}


def test_what_is_cached_is_forgotten_least_recently_used_and_last_blocks_first() -> None:
    scheduler = make(sequences_max=1, blocks=8, context_length=128)

    def play(each: Sequence) -> int | None:
        scheduler.add(each)
        step(scheduler)
        scheduler.drop(each)
        return each.cached_tokens

    for first in (0, 100, 200, 0):
        play(sequence(33, first=first))  # 3 blocks, of which 2 are kept

    assert play(sequence(33, first=0)) == 32
    assert play(sequence(33, first=300)) == 0  # the end of prompt 100 was evicted for it
    assert play(sequence(33, first=100)) == 16
    assert play(sequence(33, first=0)) == 32


def test_no_block_is_lost_and_none_is_given_twice_whatever_comes() -> None:
    """10,000 random sequences with few beginnings, in jobs of many widths, pass through a pool that is too small."""
    rng = random.Random(7)
    scheduler = make(sequences_max=8, blocks=40, context_length=400, batch_tokens_max=64)
    alive: list[Sequence] = []
    made = 0
    while made < 10_000 or alive:
        while made < 10_000 and len(alive) < 20:
            shared = list(range(rng.choice((0, 30, 64)), 130))
            made += 1
            alive.append(
                Sequence(
                    job_id=str(made // 12) if made // 12 % 2 else str(made),
                    choice=0,
                    prompt=[*shared[: rng.randint(1, 130)], *(rng.randrange(9) for _ in range(rng.randint(1, 30)))],
                    sampling=GREEDY,
                    salt=rng.choice((b"", b"x")),
                )
            )
            scheduler.add(alive[-1])
        batch = scheduler.next_batch()
        assert batch.rows or batch.preempted
        owners: dict[int, list[tuple[int, ...]]] = {}
        for row in batch.rows:
            each = row.sequence
            assert len(each.blocks) >= blocks_for(row.start + row.count)
            written = each.blocks[row.start // BLOCK_SIZE : blocks_for(row.start + row.count)]
            for block in written:
                owners.setdefault(block, []).append((id(each),))
        assert all(len(users) == 1 for users in owners.values()), "two sequences write into one block"
        scheduler.apply(batch, [Sampled(rng.randrange(9)) for _ in batch.sampling])
        for each in list(alive):
            if each.length >= 300 or rng.random() < 0.05:
                scheduler.drop(each)
                alive.remove(each)

    assert scheduler.blocks_used == 0
    assert not scheduler.busy
    assert scheduler._sharing.idle
    assert scheduler.jobs_waiting == 0
    assert not scheduler._here
    assert not scheduler._places
