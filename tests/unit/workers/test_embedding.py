"""Embedding runs: the order of passages, the rest of an interrupted job, and refusals."""

from typing import Any

import pytest

from shared.domain.errors import ContextLengthExceeded, InvalidRequest
from shared.domain.events import Completed, Embedded, Event, Finished, Started, Usage
from shared.domain.job import Job, Kind, Sampling
from shared.queue.protocols import Delivery
from workers.engines.scripted import ScriptedEngine
from workers.runs.embedding import Embedding, Passages, shortened
from workers.scheduling.engine_limits import EngineLimits


def engine(context_length: int = 50) -> ScriptedEngine:
    limits = EngineLimits(sequences_max=4, batch_tokens_max=64, context_length=context_length, vocabulary=50_000)
    return ScriptedEngine(limits=limits, step_ms=0, tokens=20)


def run(inputs: list[Any], *, log: tuple[Event, ...] = (), truncate: int | None = None, **asked: Any) -> Embedding:
    request = {"inputs": inputs, "dimensions": None, "truncate": truncate} | asked
    job = Job(
        id="embd-1",
        model="m",
        kind=Kind.EMBEDDING,
        request=request,
        sampling=Sampling(seed=0),
        created_ms=0,
        queue_deadline_ms=1000,
        run_deadline_ms=0,
    )
    return Embedding(Delivery(job=job, claim_token="e", attempt=1, log=log), engine())


def play(asked: Embedding) -> list[Event]:
    """All events of a run whose passages are computed in their order."""
    passages, embedder = Passages(tokens_max=4), engine().embedder
    passages.add(asked)
    events = asked.opening()
    while passages:
        batch = passages.next_batch()
        for (owner, index), vector in zip(batch, embedder.embed([o.passages[i] for o, i in batch]), strict=True):
            events += owner.advance(index, vector)
    return events


def test_every_input_gets_its_vector_and_the_job_ends_once() -> None:
    events = play(run(["one text", "another one", [5, 6, 7]]))

    started, *vectors, last = events
    assert started == Started(seq=0, prompt_tokens=7)
    assert {event.index for event in vectors if isinstance(event, Embedded)} == {0, 1, 2}
    assert [event.seq for event in events] == list(range(5))
    assert last == Finished(seq=4, outcome=Completed(usage=Usage(prompt_tokens=7, completion_tokens=0)))


def test_what_an_earlier_attempt_logged_is_not_computed_again() -> None:
    inputs = ["a b", "c d", "e f", "g h"]
    whole = play(run(inputs))

    for cut in range(len(whole)):
        log = whole[:cut]
        resumed = [*log, *play(run(inputs, log=tuple(log)))]

        assert [event.seq for event in resumed] == list(range(len(whole)))
        assert _vectors(resumed) == _vectors(whole)


def _vectors(events: list[Event]) -> dict[int, tuple[float, ...]]:
    return {event.index: event.vector for event in events if isinstance(event, Embedded)}


def test_a_job_with_many_inputs_does_not_keep_another_waiting() -> None:
    passages = Passages(tokens_max=4)
    long, short = run(["many words"] * 100), run(["few"])
    passages.add(long)
    passages.add(short)

    assert short in {owner for owner, _ in passages.next_batch()}


def test_a_batch_holds_as_many_tokens_as_allowed_but_at_least_one_passage() -> None:
    passages = Passages(tokens_max=4)
    asked = run(["a b c d e f g", "a b", "c d", "e"])
    passages.add(asked)

    assert [[index for _, index in passages.next_batch()] for _ in range(3)] == [[0], [1, 2], [3]]
    assert not passages


def test_a_dropped_job_leaves_nothing_to_compute() -> None:
    passages = Passages(tokens_max=4)
    asked = run(["a", "b"])
    passages.add(asked)

    passages.drop(asked)
    passages.drop(asked)

    assert not passages


def test_dimensions_shorten_to_unit_length() -> None:
    assert shortened([0.6, 0.0, 0.8], 2) == (1.0, 0.0)
    assert shortened([0.6, 0.0, 0.8], None) == (0.6, 0.0, 0.8)


def test_a_text_is_cut_only_on_request() -> None:
    long = " ".join(["word"] * 60)

    assert len(run([long], truncate=-1).passages[0]) == 50
    assert len(run([long], truncate=7).passages[0]) == 7
    with pytest.raises(ContextLengthExceeded) as refused:
        run([long])
    assert refused.value.param == "input"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"inputs": ["a", "  "]}, "input"),
        ({"inputs": [[1, 50_000]]}, "input"),
        ({"inputs": ["a"], "dimensions": 17}, "dimensions"),
        ({"inputs": ["a"], "truncate": 51}, "truncate_prompt_tokens"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(**asked)

    assert refused.value.param == param
