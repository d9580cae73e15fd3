"""The events of an answer are formatted as stream frames and as whole answers."""

import json
import time
from dataclasses import replace
from typing import Any

import orjson
import pytest

from api.formats.chat import ChatFormatter
from api.formats.common import StreamFormatter, WholeOnly
from api.formats.completion import CompletionFormatter, offsets_in
from api.formats.embedding import EmbeddingCollector
from api.formats.response import ResponseBuilder, ResponseStreamFormatter
from api.serving.render_options import decode_render_options, render_options_of
from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Delta, Echoed, Event, Finished, FinishReason, Likelihood, Logprobs, Usage
from shared.domain.job import Job, Kind
from tests.factories import done, make_job, started

USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def logprobs(logprob: float) -> tuple[Logprobs, ...]:
    return (Logprobs(Likelihood(b"a", logprob), ()),)


def said(seq: int, choice: int, text: str, logprob: float = -1.0) -> Delta:
    return Delta(seq=seq, choice=choice, text=text, token_ids=(seq,), logprobs=logprobs(logprob))


def bodies(chunks: StreamFormatter, *events: Event) -> list[dict[str, Any]]:
    """Parse the `data` of each frame that is JSON."""
    frames = [chunks.opening(), *[frame for event in events for frame in chunks.frames(event)]]
    lines = [line for frame in frames for line in frame.split(b"\n") if line.startswith(b"data: {")]
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


def completion_job(**sampling: Any) -> Job:
    return make_job(completion={"prompts": ["one", "two"], "echo": True}, **sampling)


def test_each_part_of_a_completion_is_a_frame_of_its_own() -> None:
    job = completion_job(n=1)
    formatter = CompletionFormatter(prompts=2, candidates=1, n=1, echo=True, logprobs=True)

    frames = bodies(
        formatter.stream(job, ids=False),
        started(),
        said(1, 1, "early"),
        said(2, 1, "too"),
        Echoed(seq=3, prompt=1, text="two", logprobs=logprobs(-2.0)),
        said(4, 1, "late"),
        done(5),
    )

    choices = [frame["choices"][0] for frame in frames]
    assert [choice["text"] for choice in choices] == ["two", "early", "too", "late"]
    assert {choice["index"] for choice in choices} == {1}
    assert [choice["logprobs"]["token_logprobs"] for choice in choices] == [[None], [-1.0], [-1.0], [-1.0]]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0], [3], [4], [5]]


def test_the_best_candidates_of_each_prompt_are_returned() -> None:
    job = completion_job(n=2)
    answer = CompletionFormatter(prompts=2, candidates=2, n=1, echo=True).whole(job)
    for prompt in (1, 0):
        answer.add(Echoed(seq=0, prompt=prompt, text=f"{prompt}:"))

    for choice, logprob in enumerate((-2.0, -1.0, -1.0, -2.0)):
        answer.add(said(choice, choice, str(choice), logprob))

    choices = answer.body(USAGE)["choices"]
    assert [(choice["index"], choice["text"], choice["logprobs"]) for choice in choices] == [
        (0, "0:1", None),
        (1, "1:2", None),
    ]


def test_a_part_is_added_empty_and_then_grows() -> None:
    chunks = ResponseStreamFormatter(ResponseBuilder("resp_1", {"model": "m"}, created_s=1))

    told = bodies(chunks, started(), said(1, 0, "x"), said(2, 0, "y"), done(3))

    kinds = [each["type"].removeprefix("response.") for each in told]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert told[2]["item"]["content"] == []
    assert told[3]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [len(told[at]["logprobs"]) for at in (4, 5, 6)] == [1, 1, 2]
    assert told[-1]["response"]["output"][0]["content"] == [told[7]["part"]]


@pytest.mark.parametrize(
    "formatter",
    [
        ChatFormatter(n=2, include_usage=True, logprobs=True),
        ChatFormatter(n=2),
        CompletionFormatter(prompts=2, candidates=3, n=2, echo=True, logprobs=True, include_usage=True),
        CompletionFormatter(prompts=1, candidates=2, n=2),
    ],
)
def test_a_formatter_is_rebuilt_from_what_is_stored_with_its_job(
    formatter: ChatFormatter | CompletionFormatter,
) -> None:
    chat = isinstance(formatter, ChatFormatter)
    job = replace(make_job(n=2), kind=Kind.CHAT if chat else Kind.COMPLETION)

    stored = decode_render_options(render_options_of(job, formatter).encode())

    assert stored.formatter() == formatter


def test_a_job_that_is_rebuilt_gives_the_same_answer() -> None:
    job = make_job(n=2, logprobs=0)
    events: list[Event] = [started(), said(1, 0, "x"), said(2, 1, "y"), done(3)]
    formatter = ChatFormatter(n=2, include_usage=True, logprobs=True)
    stored = decode_render_options(render_options_of(job, formatter).encode())
    rebuilt = stored.job(job.id)

    whole, again = formatter.whole(job), stored.formatter().whole(rebuilt)
    for event in events:
        whole.add(event)
        again.add(event)

    assert again.body(USAGE) == whole.body(USAGE)
    assert bodies(stored.formatter().stream(rebuilt, ids=True), *events) == bodies(
        formatter.stream(job, ids=True), *events
    )


def test_an_answer_that_comes_whole_is_not_streamed() -> None:
    ranked = completion_job(n=2)
    only = WholeOnly(lambda job: EmbeddingCollector(job, base64=False))
    best = CompletionFormatter(prompts=2, candidates=2, n=1)

    for formatter, job in ((best, ranked), (only, make_job())):
        with pytest.raises(InvalidRequest, match="cannot be streamed: send the request again"):
            formatter.stream(job, ids=True)


def test_a_response_that_was_cut_is_incomplete() -> None:
    builder = ResponseBuilder("resp_1", {"model": "m"}, created_s=1)
    cut = Delta(seq=1, choice=0, text="x", token_ids=(1,), finish_reason=FinishReason.LENGTH)

    told = [
        each
        for event in (started(), cut, Finished(seq=2, outcome=Completed(usage=USAGE)))
        for each in builder.apply(event)
    ]

    assert told[-1]["type"] == "response.incomplete"
    assert builder.body()["output"][0]["status"] == "incomplete"


def test_stored_render_options_keep_the_names_that_neighbouring_releases_read() -> None:
    options = render_options_of(make_job(n=3), ChatFormatter(n=3))

    stored = json.loads(options.encode())

    assert {"patience_ms", "run_ms", "made", "shown"} <= stored.keys()
    assert decode_render_options(options.encode()) == options


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("ab c", [b"<s>", b" ab", b" c"], [0, 0, 2]),  # SentencePiece begins with a token and a space of its own
        ("<s>a", [b"<s>", b"a"], [0, 3]),
        ("\u4f60a", [b"\xe4\xbd", b"\xa0", b"a"], [0, 0, 1]),
        ("other", [b"ab", b"c"], [0, 2]),
    ],
)
def test_a_token_of_an_echo_that_its_text_does_not_show_takes_no_place_in_it(
    text: str, tokens: list[bytes], offsets: list[int]
) -> None:
    rows = tuple(Logprobs(Likelihood(token, -1.0), ()) for token in tokens)
    answer = CompletionFormatter(prompts=1, candidates=1, n=1, echo=True, logprobs=True).whole(completion_job())
    answer.add(Echoed(seq=1, prompt=0, text=text, logprobs=rows))
    answer.add(said(2, 0, "!"))

    assert answer.body(USAGE)["choices"][0]["logprobs"]["text_offset"] == [*offsets, len(text)]


def test_the_offsets_of_a_long_prompt_are_found_in_one_pass() -> None:
    halves = [b"\xc3", b"\xa9"] * 100_000
    began = time.process_time()

    offsets = offsets_in("é" * 100_000, halves)

    assert offsets == [at // 2 for at in range(200_000)]
    assert time.process_time() - began < 2, "it takes 0.2 s, and 10 s if each token has what is before it read again"
