"""This release and the one before read each other's bytes in Redis."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared.domain.codec import decode_event, decode_job, encode_event, encode_job
from shared.domain.errors import DecodeError
from shared.domain.events import (
    CallPart,
    Cancelled,
    Completed,
    Deadline,
    Delta,
    Echoed,
    Embedded,
    Event,
    Expired,
    Failed,
    Finished,
    FinishReason,
    Likelihood,
    Logprobs,
    Started,
    Tokenized,
    Usage,
)
from shared.domain.job import Grammar, GrammarKind, Job, Kind, Priority, Sampling

WRITTEN = Path(__file__).parent / "codec"  # a file for each release, of the samples that it knew
LOGPROBS = Logprobs(Likelihood(b" \xe2\x80", -0.5), (Likelihood(b"x", -0.25),))
EVENTS: list[Event] = [
    Started(seq=0, prompt_tokens=3),
    Delta(seq=1, choice=0, text='你 "q" \u2028', token_ids=(1, 2)),
    Delta(seq=2, choice=1, text="", token_ids=(3,), finish_reason=FinishReason.LENGTH),
    Echoed(seq=3, prompt=2, text="a b", logprobs=(Logprobs(Likelihood(b"a", 0.0), ()), LOGPROBS)),
    Delta(seq=4, choice=0, text="", token_ids=(3,), logprobs=(LOGPROBS,)),
    Delta(seq=5, choice=0, text="", token_ids=(3,), reasoning="Hm"),
    Delta(seq=6, choice=0, text="a", token_ids=(3,), calls=(CallPart(0, "call_1", "f", "{"), CallPart(0, "", "", "}"))),
    Embedded(seq=7, index=7, vector=(0.5, -0.25, 2.0**-30)),
    Tokenized(seq=8, token_ids=(1, 2), texts=("a", "b")),
    Finished(seq=9, outcome=Completed(usage=Usage(prompt_tokens=3, completion_tokens=3, cached_tokens=1))),
    Finished(seq=10, outcome=Failed(code="engine_error", message="m", param="p")),
    Finished(seq=11, outcome=Cancelled()),
    Finished(seq=12, outcome=Expired(deadline=Deadline.RUN)),
]
PLAIN: dict[str, Any] = {
    "model": "m",
    "created_ms": 1_700_000_000_000,
    "queue_deadline_ms": 60_000,
    "run_deadline_ms": 0,
}
JOBS = [
    Job(
        id="plain",
        kind=Kind.CHAT,
        request={"messages": [{"role": "user", "content": "你好"}]},
        sampling=Sampling(seed=7),
        **PLAIN,
    ),
    Job(
        id="everything",
        kind=Kind.COMPLETION,
        request={"prompts": ["a", [1, 2]], "echo": True, "prompt_logprobs": 2},
        sampling=Sampling(
            seed=7,
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias=((5, -100.0),),
            max_tokens=9,
            min_tokens=2,
            ignore_eos=True,
            stop=("x", "y"),
            stop_token_ids=(4,),
            n=2,
            logprobs=0,
            grammar=Grammar(kind=GrammarKind.REGEX, text="[ab]+", param="structured_outputs.regex"),
        ),
        priority=Priority.BATCH,
        tenant="key-1",
        weight=2.5,
        grace_ms=None,
        keep_s=60,
        notify=True,
        user="u",
        cache_salt="s",
        **PLAIN,
    ),
]
STARTED = Started(seq=0, prompt_tokens=3, dtype="float32")  # since 0.3
STOPPED = Delta(seq=0, choice=0, text="a", token_ids=(1,), finish_reason=FinishReason.STOP, stop="END")  # since 0.3
DRAWN = Job(id="d", kind=Kind.CHAT, request={"messages": []}, sampling=Sampling(seed=7, seeded=False), **PLAIN)
READ_ALOUD = """
import json, sys
from shared.codec import decode_event, decode_job, encode_event, encode_job
told = json.load(sys.stdin)
jobs = [encode_job(decode_job(job.encode())).decode() for job in told["jobs"]]
events = [encode_event(decode_event(seq, event.encode())).decode() for seq, event in enumerate(told["events"])]
json.dump({"jobs": jobs, "events": events}, sys.stdout)
"""


@pytest.mark.parametrize("event", [*EVENTS, STARTED], ids=repr)
def test_an_event_survives_the_wire(event: Event) -> None:
    assert decode_event(event.seq, encode_event(event)) == event


def test_the_stop_string_of_an_answer_survives_the_wire() -> None:
    event = decode_event(0, encode_event(STOPPED))

    assert isinstance(event, Delta)
    assert (event, event.stop) == (STOPPED, "END")


@pytest.mark.parametrize("job", [*JOBS, DRAWN], ids=lambda job: job.id)
def test_a_job_survives_the_wire(job: Job) -> None:
    assert decode_job(encode_job(job)) == job


def test_what_says_nothing_is_left_out() -> None:
    plain = orjson.loads(encode_job(JOBS[0]))

    assert "cache_salt" not in plain
    assert "temperature" not in plain["sampling"]


@pytest.mark.parametrize("release", sorted(WRITTEN.glob("*.json")), ids=lambda path: path.stem)
def test_what_earlier_releases_wrote_is_read(release: Path) -> None:
    written = json.loads(release.read_text(encoding="utf-8"))

    assert [decode_job(job.encode()) for job in written["jobs"]] == JOBS
    assert [decode_event(seq, event.encode()) for seq, event in enumerate(written["events"])] == EVENTS


def test_the_release_before_reads_what_this_one_writes(release_before: Path) -> None:
    jobs, events = _read_aloud(release_before, JOBS, EVENTS)

    assert [decode_job(job.encode()) for job in jobs] == JOBS
    assert events == [encode_event(event).decode() for event in EVENTS]


def test_the_release_before_ignores_what_this_one_adds(release_before: Path) -> None:
    jobs, events = _read_aloud(release_before, [DRAWN], [STARTED, STOPPED])

    assert decode_job(jobs[0].encode()) == replace(DRAWN, sampling=Sampling(seed=7))
    assert decode_event(0, events[0].encode()) == Started(seq=0, prompt_tokens=3)
    assert events[1] == '["d",0,"a",[1],"stop"]'


def _read_aloud(release: Path, jobs: list[Job], events: list[Event]) -> tuple[list[str], list[str]]:
    """What the release writes of jobs and events that this one wrote."""
    told = {
        "jobs": [encode_job(job).decode() for job in jobs],
        "events": [encode_event(event).decode() for event in events],
    }
    read = subprocess.run(
        [sys.executable, "-c", READ_ALOUD],
        cwd=release,
        input=json.dumps(told).encode(),
        capture_output=True,
        check=True,
    )
    again = json.loads(read.stdout)
    return again["jobs"], again["events"]


def test_what_a_later_release_adds_is_ignored() -> None:
    job = orjson.loads(encode_job(JOBS[1]))
    job["colour"] = job["sampling"]["mood"] = job["sampling"]["grammar"]["tone"] = "blue"
    events = [orjson.loads(encode_event(event)) for event in EVENTS]
    longer = [event + [None] * (9 - len(event)) + ["new"] for event in events if event[0] != "d"]
    usage = {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 1, "feelings": 2}

    assert decode_job(orjson.dumps(job)) == JOBS[1]
    assert [decode_event(event.seq, orjson.dumps(wire)) for event, wire in zip(_no_deltas(), longer, strict=True)] == (
        _no_deltas()
    )
    assert decode_event(9, orjson.dumps(["f", {"completed": usage}])) == EVENTS[9]


def _no_deltas() -> list[Event]:
    return [event for event in EVENTS if not isinstance(event, Delta)]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"v": 99}', b'{"v": 1}', b'{"v": 1, "kind": "poem", "sampling": {"stop": []}}']
)
def test_bytes_that_are_no_job_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_job(data)


@pytest.mark.parametrize("data", [b"", b"[]", b'["d"]', b'["f", {"won": {}}]', b'["d", 0, "x", [1], "tired"]'])
def test_bytes_that_are_no_event_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_event(0, data)


def test_the_cost_of_an_answer_is_written_and_0_is_not() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=3, cost_micros=42)
    priced = Finished(seq=0, outcome=Completed(usage=usage))
    free = Finished(seq=0, outcome=Completed(usage=replace(usage, cost_micros=0)))

    assert decode_event(0, encode_event(priced)) == priced
    assert decode_event(0, encode_event(free)) == free
    assert b"cost" not in encode_event(free)
