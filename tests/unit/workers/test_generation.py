"""A run numbers its events after its log, and a resumed run ends like an undisturbed one."""

from typing import Any

import pytest

from shared.domain.errors import ContextLengthExceeded
from shared.domain.events import Completed, Delta, Echoed, Event, Finished, Started
from shared.queue.protocols import Delivery
from tests.factories import make_job
from workers.engines.offline import compute_all
from workers.engines.scripted import ScriptedEngine
from workers.runs.generation import Generation
from workers.scheduling.engine_limits import EngineLimits
from workers.scheduling.sequence import Sampled, Sequence


def engine(context_length: int = 1000, tokens: int = 6) -> ScriptedEngine:
    limits = EngineLimits(sequences_max=8, batch_tokens_max=64, context_length=context_length, vocabulary=50_000)
    return ScriptedEngine(limits=limits, step_ms=0, tokens=tokens)


def deliver(log: list[Event], **sampling: Any) -> Delivery:
    job = make_job(**({"temperature": 1.0, "seed": 3} | sampling))
    return Delivery(job=job, claim_token="e", attempt=1, log=tuple(log))


def play(run: Generation, using: ScriptedEngine) -> list[Event]:
    """All events of a run, without a worker."""
    events = run.opening()

    def ended(sequence: Sequence, new: Sampled) -> bool:
        events.extend(run.advance(sequence, new))
        return sequence not in run.unfinished

    compute_all(using, run.unfinished, ended)
    return events


def by_choice(events: list[Event]) -> dict[int, list[tuple[object, ...]]]:
    """The text of each choice; the order in which choices interleave is no promise."""
    said: dict[int, list[tuple[object, ...]]] = {}
    for event in events:
        if isinstance(event, Delta):
            said.setdefault(event.choice, []).append((event.text, event.token_ids, event.finish_reason))
    return said


@pytest.mark.parametrize("n", [1, 3])
def test_events_are_numbered_without_gaps_and_end_once(n: int) -> None:
    events = play(Generation(deliver([], n=n), engine()), engine())

    assert [event.seq for event in events] == list(range(len(events)))
    assert isinstance(events[0], Started)
    assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize("n", [1, 3])
def test_a_turn_resumed_anywhere_goes_on_alike(n: int) -> None:
    undisturbed = deliver([], n=n)
    whole = play(Generation(undisturbed, engine()), engine())

    for cut in range(len(whole)):
        log = tuple(whole[:cut])
        delivery = Delivery(job=undisturbed.job, claim_token="f", attempt=2, log=log)
        events = [*log, *play(Generation(delivery, engine()), engine())]
        assert [event.seq for event in events] == list(range(len(whole)))
        assert by_choice(events) == by_choice(whole)
        assert events[-1] == whole[-1]


def test_usage_counts_the_prompt_once_and_every_choice() -> None:
    (*_, last) = play(Generation(deliver([], n=3, max_tokens=4), engine()), engine())

    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Completed)
    assert last.outcome.usage.completion_tokens == 12


def test_choices_differ_unless_greedy() -> None:
    def texts(temperature: float) -> set[str]:
        events = play(Generation(deliver([], n=3, temperature=temperature), engine()), engine())
        deltas = [event for event in events if isinstance(event, Delta)]
        return {"".join(d.text for d in deltas if d.choice == choice) for choice in range(3)}

    assert len(texts(1.0)) == 3
    assert len(texts(0)) == 1


def test_a_budget_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        Generation(deliver([], max_tokens=50), engine(context_length=51))

    assert caught.value.param == "messages"


def test_a_clamped_budget_is_what_fits_beside_the_prompt() -> None:
    tight = engine(context_length=51, tokens=100)
    events = play(Generation(deliver([], max_tokens=50, clamped=True, ignore_eos=True), tight), tight)

    last = events[-1]
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Completed)
    assert last.outcome.usage.prompt_tokens + last.outcome.usage.completion_tokens == 51


def complete(prompts: list[Any], *, echo: bool = False, scores: int | None = None, **sampling: Any) -> dict[str, Any]:
    return {"completion": {"prompts": prompts, "echo": echo, "prompt_logprobs": scores}} | sampling


def texts(events: list[Event]) -> list[str]:
    """The texts of all choices; in each, the echoed prompt comes first."""
    said = by_choice(events)
    return ["".join(str(text) for text, _, _ in said[choice]) for choice in sorted(said)]


def test_each_prompt_of_a_completion_is_answered_as_if_it_were_alone() -> None:
    together = play(Generation(deliver([], **complete(["one", [5, 6], "one"], n=2)), engine()), engine())
    alone = [play(Generation(deliver([], **complete([item], n=2)), engine()), engine()) for item in ("one", [5, 6])]

    assert texts(together) == [*texts(alone[0]), *texts(alone[1]), *texts(alone[0])]
    assert len(set(texts(together))) == 4


def test_echoed_prompts_come_first_and_once() -> None:
    delivery = deliver([], **complete(["one two", [5, 6]], echo=True))
    events = play(Generation(delivery, engine()), engine())

    assert events[1:3] == [Echoed(seq=1, prompt=0, text="one two"), Echoed(seq=2, prompt=1, text=" t5 t6")]
    for cut in range(len(events)):
        again = Delivery(job=delivery.job, claim_token="f", attempt=2, log=tuple(events[:cut]))
        resumed = [*events[:cut], *play(Generation(again, engine()), engine())]
        assert [event.seq for event in resumed] == list(range(len(events)))
        assert sum(isinstance(event, Echoed) for event in resumed) == 2
        assert texts(resumed) == texts(events)


def test_only_the_prompt_when_no_tokens_are_wanted() -> None:
    events = play(Generation(deliver([], **complete(["one two"], echo=True, max_tokens=0)), engine()), engine())

    *_, delta, last = events
    assert isinstance(delta, Delta)
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", (), "length")
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Completed)
    assert (last.outcome.usage.prompt_tokens, last.outcome.usage.completion_tokens) == (2, 0)


def test_a_completion_that_does_not_fit_names_its_prompt() -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        Generation(deliver([], **complete(["a b"], max_tokens=50)), engine(context_length=51))

    assert refused.value.param == "prompt"
