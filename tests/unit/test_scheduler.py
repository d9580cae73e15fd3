"""Who computes what: decode rows first, prompts in chunks under a budget, newcomers at the next step."""

from workers.scheduler import Scheduler
from workers.sequence import Choosing, Sequence

GREEDY = Choosing(seed=0, temperature=0, top_p=1, top_k=0)


def sequence(prompt: int, output: int = 0) -> Sequence:
    return Sequence(job_id="j", choice=0, prompt=list(range(prompt)), choosing=GREEDY, output=list(range(output)))


def run(scheduler: Scheduler) -> list[tuple[int, int]]:
    """One step with token 9 for everyone; returns (start, count) of each row."""
    batch = scheduler.next_batch()
    scheduler.apply(batch, [9] * len(batch.sampling))
    return [(row.start, row.count) for row in batch.rows]


def test_a_long_prompt_is_computed_in_chunks_while_others_decode() -> None:
    scheduler = Scheduler(sequences_max=4, batch_tokens_max=10)
    scheduler.add(sequence(4))
    run(scheduler)
    scheduler.add(sequence(25))

    steps = [run(scheduler) for _ in range(4)]

    assert steps == [[(4, 1), (0, 10)], [(5, 1), (10, 10)], [(6, 1), (20, 5)], [(7, 1), (25, 1)]]


def test_a_newcomer_joins_at_the_next_step_and_the_batch_is_bounded() -> None:
    scheduler = Scheduler(sequences_max=2, batch_tokens_max=100)
    first, second, third = sequence(3), sequence(3), sequence(3)
    for added in (first, second, third):
        scheduler.add(added)

    assert len(run(scheduler)) == 2
    scheduler.drop(first)

    assert run(scheduler) == [(3, 1), (0, 3)]
    assert scheduler.running == 2


def test_only_a_row_that_reaches_the_end_is_sampled() -> None:
    scheduler = Scheduler(sequences_max=2, batch_tokens_max=5)
    added = sequence(8)
    scheduler.add(added)

    first = scheduler.next_batch()
    assert first.sampling == []
    assert scheduler.apply(first, []) == []
    second = scheduler.next_batch()
    assert scheduler.apply(second, [42]) == [(added, 42)]
    assert added.output == [42]


def test_logged_output_is_prefilled_like_a_prompt_on_resume() -> None:
    scheduler = Scheduler(sequences_max=1, batch_tokens_max=100)
    resumed = sequence(3, output=4)
    scheduler.add(resumed)

    batch = scheduler.next_batch()

    assert [(row.start, row.count, row.decoding) for row in batch.rows] == [(0, 7, False)]
    assert resumed.tokens(1, 5) == [1, 2, 0, 1, 2]


def test_dropping_twice_or_a_stranger_is_no_error() -> None:
    scheduler = Scheduler(sequences_max=1, batch_tokens_max=100)
    added = sequence(3)
    scheduler.add(added)
    scheduler.drop(added)

    scheduler.drop(added)
    scheduler.drop(sequence(1))

    assert not scheduler.busy
