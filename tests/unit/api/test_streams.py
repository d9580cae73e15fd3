"""A stream that is cut after any frame resumes with the next one, byte by byte."""

from collections.abc import Callable, Sequence

import pytest

from api.formats.chat import ChatFormatter
from api.formats.common import StreamFormatter
from api.formats.completion import CompletionFormatter
from api.formats.response import ResponseBuilder, ResponseStreamFormatter
from api.http.event_position import position_after, sequence_number_after
from api.serving.render_options import render_options_of
from shared.domain.errors import InvalidRequest
from shared.domain.events import CallPart, Delta, Echoed, Event, FinishReason, Likelihood, Logprobs, Started
from tests.factories import delta, done, make_job, started

ROW = Logprobs(Likelihood(b"a", -0.5), (Likelihood(b"b", -1.0),))
CALLS = (CallPart(0, "call_1", "weather", ""), CallPart(0, "", "", '{"city":'))
CHAT: Sequence[Event] = (
    Started(seq=0, prompt_tokens=3),
    Delta(seq=1, choice=0, text="", token_ids=(1,), reasoning="because"),
    Delta(seq=2, choice=1, text="said", token_ids=(2,), reasoning="so"),
    delta(3, ""),
    Delta(seq=4, choice=0, text="x", token_ids=(4,), logprobs=(ROW,)),
    Delta(seq=5, choice=0, text="it rains", token_ids=(5,), calls=CALLS),
    Delta(seq=6, choice=0, text="", token_ids=(6,), calls=(CallPart(0, "", "", '"Bern"}'),), reasoning="hm"),
    Delta(seq=7, choice=1, text="end", token_ids=(7,), finish_reason=FinishReason.STOP),
    Delta(seq=8, choice=0, text="z", token_ids=(8,), calls=CALLS, reasoning="r", finish_reason=FinishReason.TOOL_CALLS),
    done(9),
)
COMPLETION: Sequence[Event] = (
    started(),
    Delta(seq=1, choice=2, text="early", token_ids=(1,), logprobs=(ROW,)),  # held until its prompt has come
    Echoed(seq=2, prompt=0, text="one", logprobs=(ROW, ROW)),
    Delta(seq=3, choice=0, text="a", token_ids=(3,), logprobs=(ROW,)),
    Echoed(seq=4, prompt=1, text="two", logprobs=(ROW,)),
    delta(5, ""),
    Delta(seq=6, choice=1, text="b", token_ids=(6,), finish_reason=FinishReason.LENGTH),
    done(7),
)
Opened = Callable[[str | None], StreamFormatter]


def chat(after: str | None) -> StreamFormatter:
    formatter = ChatFormatter(n=2, include_usage=True, logprobs=True)
    render_options = render_options_of(make_job(n=2, logprobs=1), formatter)
    job = render_options.job("chatcmpl-1")
    return render_options.formatter().stream(job, ids=True, after=position_after(None, after))


def completion(after: str | None) -> StreamFormatter:
    job = make_job(completion={"prompts": ["one", "two"], "echo": True}, n=2, logprobs=1)
    formatter = CompletionFormatter(prompts=2, candidates=2, n=2, echo=True, include_usage=True, logprobs=True)
    render_options = render_options_of(job, formatter)
    job = render_options.job("cmpl-1")
    return render_options.formatter().stream(job, ids=True, after=position_after(after, None))


def response(after: str | None) -> StreamFormatter:
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=1_700_000_000)
    return ResponseStreamFormatter(builder, after=sequence_number_after(None, after), ids=True)


def frames_of(chunks: StreamFormatter, events: Sequence[Event]) -> list[bytes]:
    body = chunks.opening() + b"".join(frame for event in events for frame in chunks.frames(event))
    return [frame + b"\n\n" for frame in body.split(b"\n\n")[:-1]]


def last_id(frames: Sequence[bytes]) -> str | None:
    """Return the Last-Event-ID of a client that has read these frames."""
    ids = [line[4:].decode() for frame in frames for line in frame.split(b"\n") if line.startswith(b"id: ")]
    return ids[-1] if ids else None


@pytest.mark.parametrize(
    ("opened", "events"),
    [(chat, CHAT), (completion, COMPLETION), (response, [e for e in CHAT if e.seq not in (2, 6, 7)])],
)
def test_a_cut_behind_any_frame_costs_and_repeats_nothing(opened: Opened, events: Sequence[Event]) -> None:
    whole = frames_of(opened(None), events)

    rests = [frames_of(opened(last_id(whole[:cut])), events) for cut in range(len(whole) + 1)]

    assert rests == [whole[cut:] for cut in range(len(whole) + 1)]
    assert len(whole) > len(events)  # otherwise no event has several frames, and the test is void


def test_the_last_frame_of_an_event_carries_its_number_alone() -> None:
    ids = [last_id([frame]) for frame in frames_of(chat(None), CHAT[:3])]

    assert ids == ["-1.1", "0", "1", "1.1", "2"]


@pytest.mark.parametrize(
    "text", ["", "x", "1.", "1.0", "1.01", ".1", "-2", "+1", " 1", "1.1.1", "1e3", "²", "9" * 5000]
)
def test_a_place_that_no_frame_has_is_refused_by_the_name_of_its_parameter(text: str) -> None:
    for given, param in (((text, None), "starting_after"), ((None, text), "Last-Event-ID")):
        with pytest.raises(InvalidRequest, match=param) as refused:
            position_after(*given)
        assert refused.value.param == param


def test_a_response_counts_frames_only() -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        sequence_number_after(None, "4.1")
