"""Encodes and decodes jobs and events: the only module that knows their bytes in Redis. They are JSON, never pickle.

Version rule: two releases run side by side while a fleet is upgraded or rolled back. A release therefore reads what the
previous one writes, and writes what the previous one reads. Within a format, an addition must be one that an older
reader can ignore: a field of a job that has a default and is left out of the bytes at that default, or an element at
the end of an event. Anything else is a new format, which is read one release before it is written. A job in an unknown
format fails and keeps its bytes for a replay. tests/unit/shared/test_codec.py holds the bytes of each release.

Events are compact arrays, because one is written for every token: `["d", choice, text, [ids]]`, then the finish
reason, the logprobs, the reasoning, the tool calls and the stop string, up to the last that the event has. A token's
bytes travel as a string of one character per byte, a vector as base64 of little-endian single-precision numbers.
"""

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import fields as fields_of
from typing import Any, assert_never

import orjson

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
    Outcome,
    Started,
    Tokenized,
    Usage,
)
from shared.domain.job import Grammar, GrammarKind, Job, Kind, Priority, Sampling

VERSION = 1
# The bytes keep these names, since neighbouring releases read them.
WIRE_NAMES = {"queue_deadline_ms": "patience_ms", "run_deadline_ms": "run_ms"}
NEEDED = frozenset({"priority", "stop", "stop_token_ids", "logit_bias", "grammar"})  # readers of release 0.1 need these


def encode_job(job: Job) -> bytes:
    return orjson.dumps({"v": VERSION, **_given(job), "sampling": _given(job.sampling)})


def decode_job(data: bytes) -> Job:
    try:
        fields = orjson.loads(data)
        version = fields.pop("v")
        if version != VERSION:
            raise DecodeError(f"the job was written in format {version}, this version reads {VERSION}")
        sampling = _known(Sampling, fields["sampling"])
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
            sampling[name] = tuple(sampling.get(name, ()))
        sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling.get("logit_bias", ()))
        if grammar := sampling.get("grammar"):
            sampling["grammar"] = Grammar(**(_known(Grammar, grammar) | {"kind": GrammarKind(grammar["kind"])}))
        made = {"kind": Kind(fields["kind"]), "sampling": Sampling(**sampling)}
        if "priority" in fields:
            made["priority"] = Priority(fields["priority"])
        for name, wire_name in WIRE_NAMES.items():
            fields[name] = fields.pop(wire_name)
        return Job(**(_known(Job, fields) | made))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"not a job: {error}") from error


def _given(thing: Job | Sampling) -> dict[str, Any]:
    """Return the fields whose values are not their defaults."""
    values = ((field, getattr(thing, field.name)) for field in fields_of(thing))
    given = {field.name: value for field, value in values if field.name in NEEDED or value != field.default}
    return {WIRE_NAMES.get(name, name): value for name, value in given.items()}


def _known(kind: type[Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that a later release added."""
    names = {field.name for field in fields_of(kind)}
    return {name: value for name, value in fields.items() if name in names}


def encode_event(event: Event) -> bytes:
    """Encode the event without its number, which is its place in the log."""
    match event:
        case Delta():
            return orjson.dumps(["d", event.choice, event.text, event.token_ids, *_rest_to_wire(event)])
        case Echoed():
            return orjson.dumps(["p", event.prompt, event.text, [_row_to_wire(each) for each in event.logprobs]])
        case Started():
            return orjson.dumps(["s", event.prompt_tokens, *([event.dtype] if event.dtype else [])])
        case Embedded():
            return orjson.dumps(["v", event.index, vector_to_base64(event.vector)])
        case Tokenized():
            return orjson.dumps(["t", event.token_ids, event.texts])
        case Finished():
            return orjson.dumps(["f", _outcome_to_wire(event.outcome), *([event.ended_ms] if event.ended_ms else [])])
        case _:
            assert_never(event)


def decode_event(seq: int, data: bytes) -> Event:
    try:
        return event_from_wire(seq, orjson.loads(data))
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"not an event: {error}") from error


def event_from_wire(seq: int, wire: list[Any]) -> Event:
    try:
        match wire:
            case ["d", choice, text, ids]:
                return Delta(seq=seq, choice=choice, text=text, token_ids=tuple(ids))
            case ["d", choice, text, ids, reason, *rest]:
                return Delta(
                    seq=seq,
                    choice=choice,
                    text=text,
                    token_ids=tuple(ids),
                    finish_reason=FinishReason(reason) if reason else None,
                    logprobs=tuple(map(_row_from_wire, rest[0])) if rest else (),
                    reasoning=rest[1] if len(rest) > 1 else "",
                    calls=tuple(CallPart(*part) for part in rest[2]) if len(rest) > 2 else (),
                    stop=rest[3] if len(rest) > 3 else "",
                )
            case ["p", prompt, text, rows, *_]:
                return Echoed(seq=seq, prompt=prompt, text=text, logprobs=tuple(map(_row_from_wire, rows)))
            case ["s", prompt_tokens, *rest]:
                return Started(seq=seq, prompt_tokens=prompt_tokens, dtype=(rest[0] if rest else "") or "")
            case ["v", index, vector, *_]:
                return Embedded(seq=seq, index=index, vector=_vector_from_base64(vector))
            case ["t", ids, texts, *_]:
                return Tokenized(seq=seq, token_ids=tuple(ids), texts=tuple(texts))
            case ["f", outcome, *rest]:
                return Finished(seq=seq, outcome=_outcome_from_wire(outcome), ended_ms=rest[0] if rest else 0)
            case _:
                raise DecodeError(f"unknown event {wire!r:.80}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"not an event: {error}") from error


def vector_to_base64(vector: Sequence[float]) -> str:
    """Encode little-endian single-precision numbers as base64, which is also OpenAI's `encoding_format`."""
    return b64encode(_little(array("f", vector)).tobytes()).decode()


def _vector_from_base64(text: str) -> tuple[float, ...]:
    return tuple(_little(array("f", b64decode(text))))


def _little(numbers: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _rest_to_wire(event: Delta) -> list[Any]:
    """Return the optional elements of a delta, up to the last that this one has; most tokens have none."""
    if event.stop or event.calls or event.reasoning or event.logprobs:
        rows = [_row_to_wire(each) for each in event.logprobs]
        rest = [event.finish_reason, rows, event.reasoning, [tuple(part) for part in event.calls], event.stop]
        return rest if event.stop else rest[:4] if event.calls else rest[:3] if event.reasoning else rest[:2]
    return [event.finish_reason] if event.finish_reason else []


def _row_to_wire(row: Logprobs) -> list[tuple[str, float]]:
    return [(each.token.decode("latin-1"), each.logprob) for each in (row.chosen, *row.top)]


def _row_from_wire(row: list[Any]) -> Logprobs:
    chosen, *top = (Likelihood(token.encode("latin-1"), logprob) for token, logprob in row)
    return Logprobs(chosen, tuple(top))


def _outcome_to_wire(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Completed(usage=usage):
            counts = asdict(usage)
            left_out = [name for name in ("estimated", "cost_micros") if not counts[name]]
            return {"completed": {name: count for name, count in counts.items() if name not in left_out}}
        case Failed():
            return {"failed": {"code": outcome.code, "message": outcome.message, "param": outcome.param}}
        case Cancelled():
            return {"cancelled": {}}
        case Expired(deadline=deadline):
            return {"expired": {"deadline": deadline}}
        case _:
            assert_never(outcome)


def _outcome_from_wire(wire: dict[str, Any]) -> Outcome:
    (kind, fields), *_ = wire.items()
    match kind:
        case "completed":
            return Completed(usage=Usage(**_known(Usage, fields)))
        case "failed":
            return Failed(**_known(Failed, fields))
        case "cancelled":
            return Cancelled()
        case "expired":
            return Expired(deadline=Deadline(fields.get("deadline", Deadline.QUEUE)))
        case _:
            raise DecodeError(f"unknown outcome {kind!r:.40}")
