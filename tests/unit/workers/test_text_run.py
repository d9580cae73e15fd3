from typing import Any

import pytest

from penstock.engines import (
    AnswerLost,
    CallPart,
    ChatSource,
    FinishReason,
    InvalidRequest,
    Piece,
    Reasoning,
    Resume,
    Text,
    Usage,
)
from shared.domain.events import Completed, Delta, Echoed, Event, Finished, Likelihood, Logprobs, Started
from shared.domain.job import Grammar, GrammarKind
from shared.queue.protocols import Delivery
from tests.factories import make_job
from tests.unit.workers.sources import Echo, Given, after, delivered
from workers.runs.text_run import TextRun


def computed(source: ChatSource, delivery: Delivery, *pieces: Piece, choice: int = 0) -> list[Event]:
    """The events of a run whose choice gets these pieces, and then no more."""
    run = TextRun(delivery, source)
    events = run.opening()
    left = iter(pieces)
    while not run.is_over(choice):
        piece = next(left, None)
        events += run.close(choice) if piece is None else run.advance(choice, piece)
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def usage_of(events: list[Event]) -> Usage:
    last = events[-1]
    assert isinstance(last, Finished)
    assert isinstance(last.outcome, Completed)
    return last.outcome.usage


def reason_of(events: list[Event]) -> FinishReason | None:
    last = events[-2]
    assert isinstance(last, Delta)
    return last.finish_reason


def test_pieces_become_numbered_events_and_an_end() -> None:
    events = computed(Given(), delivered(), "hello ", Text("world"))

    assert [type(event) for event in events] == [Started, Delta, Delta, Delta, Finished]
    assert [event.seq for event in events] == [0, 1, 2, 3, 4]
    assert (text_of(events), reason_of(events)) == ("hello world", FinishReason.STOP)


def test_an_answer_ends_before_a_stop_string_that_comes_in_two_pieces() -> None:
    events = computed(Given(), delivered(stop=("END",)), "one E", "ND two", "three")

    assert (text_of(events), reason_of(events)) == ("one ", FinishReason.STOP)
    assert [event.stop for event in events if isinstance(event, Delta)] == ["", "END"]


def test_what_may_become_a_stop_string_is_shown_if_it_does_not() -> None:
    events = computed(Given(), delivered(stop=("END",)), "one E", "N", " and E")

    assert text_of(events) == "one EN and E"


def test_an_answer_whose_tokens_the_source_tells_has_no_more_than_its_budget() -> None:
    events = computed(Given(), delivered(max_tokens=2), Text("a ", 1), Text("b ", 1), Text("c ", 1))

    assert (text_of(events), reason_of(events)) == ("a b ", FinishReason.LENGTH)
    assert usage_of(events).completion_tokens == 2


def test_an_answer_whose_tokens_are_estimated_is_cut_within_a_piece() -> None:
    events = computed(Given(), delivered(max_tokens=3), "0123456789abcdefghij")

    assert (text_of(events), reason_of(events)) == ("0123456789a", FinishReason.LENGTH)
    assert (usage_of(events).completion_tokens, usage_of(events).estimated) == (3, True)


def test_a_source_that_keeps_its_budget_is_not_cut_by_an_estimate() -> None:
    source = Given()
    source.keeps_budget = True

    events = computed(source, delivered(max_tokens=3), "0123456789abcdefghij", FinishReason.LENGTH)

    assert (text_of(events), reason_of(events)) == ("0123456789abcdefghij", FinishReason.LENGTH)


def test_usage_that_the_source_tells_is_the_jobs() -> None:
    events = computed(Given(), delivered(), "x", FinishReason.STOP, Usage(prompt_tokens=11, completion_tokens=5))

    assert usage_of(events) == Usage(prompt_tokens=11, completion_tokens=5)


def test_usage_counts_the_prompt_once_over_the_choices() -> None:
    run = TextRun(delivered(n=2), Given())
    for choice in (0, 1):
        run.advance(choice, "x")
        run.advance(choice, Usage(prompt_tokens=11, completion_tokens=5, cached_tokens=4))
        last = run.close(choice)

    assert usage_of(last) == Usage(prompt_tokens=11, completion_tokens=10, cached_tokens=4)


class Priced(Given):
    """Its tokens cost a micro each."""

    def cost(self, usage: Usage) -> int:
        return usage.prompt_tokens + usage.completion_tokens


def test_a_job_costs_what_the_usages_of_its_choices_say() -> None:
    run = TextRun(delivered(n=2), Priced())
    for choice, micros in ((0, 30), (1, 12)):
        run.advance(choice, "x")
        run.advance(choice, Usage(prompt_tokens=11, completion_tokens=5, cost_micros=micros))
        last = run.close(choice)

    assert usage_of(last).cost_micros == 42


def test_an_answer_without_usage_costs_what_is_counted_of_it() -> None:
    events = computed(Priced(), delivered(), "0123456789")

    counted = usage_of(events)
    assert counted.estimated
    assert counted.cost_micros == counted.prompt_tokens + counted.completion_tokens > 3


def test_each_choice_without_usage_pays_for_its_prompt() -> None:
    run = TextRun(delivered(n=2), Priced())
    for choice in (0, 1):
        run.advance(choice, "x")
        last = run.close(choice)

    counted = usage_of(last)
    assert counted.cost_micros == 2 * counted.prompt_tokens + counted.completion_tokens


def test_an_image_counts_as_no_text_of_the_prompt() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    job = make_job()
    job.request["messages"][0]["content"] = [{"type": "text", "text": "hello"}, image]

    assert TextRun(delivered(job), Given()).prompt_tokens < 10


def test_reasoning_and_calls_keep_apart_from_the_text() -> None:
    source = Given()
    source.abilities = frozenset({"tools"})
    first, rest = CallPart(0, "call_1", "look", ""), CallPart(0, "", "", '{"at": 1}')

    events = computed(source, delivered(), Reasoning("hm"), first, rest)

    assert [event.reasoning for event in events if isinstance(event, Delta)] == ["hm", "", "", ""]
    assert [event.calls for event in events if isinstance(event, Delta)] == [(), (first,), (rest,), ()]
    assert reason_of(events) is FinishReason.TOOL_CALLS


def test_log_probabilities_pass_if_the_request_asks_for_them() -> None:
    row = Logprobs(Likelihood(b"x", -0.5), ())
    source = Given()
    source.abilities = frozenset({"logprobs"})

    asked = computed(source, delivered(logprobs=0), Text("x", 1, (row,)))
    unasked = computed(source, delivered(), Text("x", 1, (row,)))

    assert [event.logprobs for event in (*asked, *unasked) if isinstance(event, Delta)] == [(row,), (), (), ()]


def test_a_repeated_answer_goes_on_where_the_log_ends_at_any_event() -> None:
    delivery = delivered(prompt="one two three", stop=("four",))
    words = ("one ", "two ", "three ", "f", "ive")
    whole = computed(Echo(None), delivery, *words)

    for length in range(len(whole)):
        rest = computed(Echo(None), after(delivery, whole[:length]), *words) if length else whole
        log = [*whole[:length], *rest] if length else whole

        assert text_of(log) == "one two three five"
        assert [event.seq for event in log] == list(range(len(log)))
        assert usage_of(log) == usage_of(whole)


@pytest.mark.parametrize("pieces", [("one ", "too "), ("one ",)])
def test_a_repeated_answer_that_differs_is_lost(pieces: tuple[str, ...]) -> None:
    delivery = delivered()
    begun = computed(Echo(None), delivery, "one ", "two ")[:3]

    with pytest.raises(AnswerLost):
        computed(Echo(None), after(delivery, begun), *pieces)


def test_a_repeated_call_adds_only_what_is_new() -> None:
    source = Echo(None)
    source.abilities = frozenset({"tools"})
    delivery = delivered()
    begun = computed(source, delivery, CallPart(0, "call_1", "look", ""), CallPart(0, "", "", '{"a"'))[:3]

    rest = computed(source, after(delivery, begun), CallPart(0, "call_9", "look", '{"a": 1}'))

    assert [event.calls for event in rest if isinstance(event, Delta)] == [(CallPart(0, "", "", ": 1}"),), ()]


def test_a_source_that_goes_on_is_told_what_was_said() -> None:
    source = Given()
    source.resume = Resume.EXACT
    delivery = delivered()
    begun = computed(source, delivery, Reasoning("hm"), "one ")[:3]

    run = TextRun(after(delivery, begun), source)
    run.ask(0)
    rest = [*run.advance(0, "two"), *run.close(0)]

    assert text_of([*begun, *rest]) == "one two"
    assert usage_of(rest).estimated


async def test_what_was_said_tells_in_how_many_pieces_it_came() -> None:
    source = Given()
    source.resume = Resume.EXACT
    delivery = delivered()
    begun = computed(source, delivery, "a", "b", "c")[:4]

    async for _ in TextRun(after(delivery, begun), source).ask(0):  # type: ignore[union-attr]
        pass

    assert source.asked[-1].said.pieces == 3


@pytest.mark.parametrize(("counts_whole", "completion_tokens"), [(True, 40), (False, 2)])
def test_usage_of_a_continued_answer_is_that_of_a_source_that_counts_the_whole(
    counts_whole: bool, completion_tokens: int
) -> None:
    source = Given()
    source.resume, source.counts_whole = Resume.EXACT, counts_whole
    delivery = delivered()
    begun = computed(source, delivery, "one ")[:2]

    rest = computed(source, after(delivery, begun), "two", Usage(prompt_tokens=5, completion_tokens=40))

    assert usage_of(rest).completion_tokens == completion_tokens
    assert usage_of(rest).estimated


async def test_the_request_holds_what_the_client_asked_for() -> None:
    source = Given("x")
    delivery = delivered(prompt="hello", temperature=0.5)

    _ = [piece async for piece in TextRun(delivery, source).ask(0)]  # type: ignore[union-attr]

    (asked,) = source.asked
    assert (asked.question, asked.sampling.temperature, asked.choice) == ("hello", 0.5, 0)
    assert (asked.job_id, asked.model, bool(asked.said)) == (delivery.job.id, "m", False)


@pytest.mark.parametrize(
    ("resume", "pieces", "sampling"),
    [
        (Resume.RESTART, ("one",), {}),
        (Resume.PREFILL, ("{",), {"grammar": Grammar(kind=GrammarKind.REGEX, text=".*", param="p")}),
        (Resume.PREFILL, (CallPart(0, "c", "look", "{"),), {}),
    ],
)
def test_an_answer_that_cannot_be_continued_is_lost(
    resume: Resume, pieces: tuple[Piece, ...], sampling: dict[str, Any]
) -> None:
    source = Given()
    source.resume, source.abilities = resume, frozenset({"structured_outputs", "tools"})
    delivery = delivered(**sampling)
    begun = computed(source, delivery, *pieces)[:2]

    with pytest.raises(AnswerLost):
        TextRun(after(delivery, begun), source).ask(0)


def test_an_answer_that_had_not_begun_begins_again() -> None:
    delivery = delivered()
    begun = computed(Given(), delivery, "one")[:1]

    rest = computed(Given(), after(delivery, begun), "one")

    assert text_of(rest) == "one"


def test_a_job_whose_last_choice_was_logged_only_ends() -> None:
    delivery = delivered()
    whole = computed(Given(), delivery, "one")

    run = TextRun(after(delivery, whole[:-1]), Given())

    assert run.unfinished == []
    assert [type(event) for event in run.opening()] == [Finished]


def test_a_completion_comes_back_after_its_prompt() -> None:
    delivery = delivered(completion={"prompts": ["a", "b"], "echo": True, "prompt_logprobs": None}, n=2)

    run = TextRun(delivery, Echo(None))
    events = run.opening()

    assert [event.text for event in events if isinstance(event, Echoed)] == ["a", "b"]
    assert run.unfinished == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 2}, "logprobs"),
        ({"logit_bias": ((1, 2.0),)}, "logit_bias"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"stop_token_ids": (1,)}, "stop_token_ids"),
        ({"grammar": Grammar(kind=GrammarKind.REGEX, text=".*", param="response_format")}, "response_format"),
        ({"completion": {"prompts": [[1, 2]], "echo": False, "prompt_logprobs": None}}, "prompt"),
        ({"completion": {"prompts": ["a"], "echo": True, "prompt_logprobs": 0}}, "logprobs"),
    ],
)
def test_what_the_source_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TextRun(delivered(**fields), Echo(None))

    assert caught.value.param == param


def test_a_request_for_a_verb_that_the_source_lacks_names_what_it_has() -> None:
    with pytest.raises(InvalidRequest, match=r"completes no texts: ask /v1/chat/completions\."):
        TextRun(delivered(completion={"prompts": ["a"], "echo": False, "prompt_logprobs": None}), Given())
