"""A body's values are counted before it is parsed."""

import pytest

from api.http.json_route import CONTAINERS_MAX, DEPTH_MAX, STRINGS_MAX, VALUES_MAX, read, require_bounded
from api.http.problems import Refused
from api.schemas.chat import ChatCompletionRequest
from shared.domain.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"[" + b"0," * (VALUES_MAX + 1) + b"0]", "values"),
        (b"[" + b"{}," * CONTAINERS_MAX + b"0]", "objects and arrays;"),
        (b"[" + b'"",' * (STRINGS_MAX + 1) + b"0]", "strings"),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), "within each other"),
        (b'["\\\\",' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"]", "within each other"),
        (b'["\\"",' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"]", "within each other"),
    ],
)
def test_too_much_is_named(body: bytes, what: str) -> None:
    with pytest.raises(InvalidRequest, match=what):
        require_bounded(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'["' + b"[{," * VALUES_MAX + b'"]',
        b'["\\\\\\"' + b"[" * 1000 + b'\\\\"]',
        b'["' + b'\\"' * (2 * STRINGS_MAX + 2) + b'"]',
        b"[" * DEPTH_MAX + b"]" * DEPTH_MAX,
        b"[" + b"[0]," * (CONTAINERS_MAX - 2) + b"0]",
    ],
    ids=["empty", "in a text", "behind escapes", "escaped quotes", "deep", "wide"],
)
def test_what_texts_hold_counts_for_nothing(body: bytes) -> None:
    require_bounded(body)


@pytest.mark.parametrize(
    "tail", [b"", b',"user":5', b',"messages":[{"role":"user","content":[{"type":"text","text":5}]}]']
)
def test_only_one_error_is_told(tail: bytes) -> None:
    """This also holds for a request with many wrong fields of different kinds."""
    with pytest.raises((Refused, InvalidRequest)) as told:
        read(b'{"model":"m","temperature":"x","top_p":7,"stop":[1,2,3]' + tail + b"}", ChatCompletionRequest)

    assert len(str(told.value)) < 300
