"""Text is emitted only once it is final: whole characters, no stop string, and nothing after one."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from shared.domain.events import FinishReason
from workers.runs.detokenizer import IncrementalDetokenizer

END = 256


def decode(ids: Sequence[int]) -> str:
    """Decode ids that are bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def decode_with_fallback(ids: Sequence[int]) -> str:
    """Decode bytes like SentencePiece: if one byte of a run fits nowhere, all of them become marks."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(ids)


def detokenizer(*stop: str, tokens_max: int = 10_000) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(decode, eos_ids=frozenset({END}), stop=stop, tokens_max=tokens_max)


def push_all(written: IncrementalDetokenizer, data: bytes) -> tuple[list[str], FinishReason | None]:
    texts, reason = [], None
    for byte in data:
        text, reason = written.push(byte)
        texts.append(text)
        if reason:
            break
    return texts, reason


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    texts, _ = push_all(detokenizer(), "a你b🙂".encode())

    assert texts == ["a", "", "", "你", "b", "", "", "", "🙂"]


@pytest.mark.parametrize("seed", range(20))
def test_any_text_comes_out_whole(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab 你好🙂é\n") for _ in range(200))

    texts, _ = push_all(detokenizer("never this"), text.encode())

    assert "".join(texts) == text


@pytest.mark.parametrize("text", ["🙂🙂🙂 a", "日本🙂日本🙂 a", "é你🙂é你🙂 a"])
def test_characters_side_by_side_come_out_whole_though_their_bytes_decode_together(text: str) -> None:
    written = IncrementalDetokenizer(decode_with_fallback, eos_ids=frozenset({END}), stop=(), tokens_max=10_000)

    texts, _ = push_all(written, text.encode())

    assert texts[len(text[0].encode()) - 1] == text[0]
    assert "".join(texts) == text


@pytest.mark.parametrize("decode", [decode, decode_with_fallback])
def test_a_byte_that_is_no_character_spoils_none_that_was_shown(decode: Any) -> None:
    written = IncrementalDetokenizer(decode, eos_ids=frozenset({END}), stop=(), tokens_max=10_000)

    texts, _ = push_all(written, "你好".encode() + b"\xff")

    assert "".join(texts) == "你好"
    assert written.push(END) == ("\ufffd", FinishReason.STOP)


def test_half_a_character_at_the_end_shows_as_a_replacement_mark() -> None:
    written = detokenizer()
    push_all(written, "a你".encode()[:3])

    assert written.push(END) == ("\ufffd", FinishReason.STOP)


def test_a_stop_ends_the_text_before_it_and_is_never_shown() -> None:
    texts, reason = push_all(detokenizer("###"), b"one ## two ### three")

    assert "".join(texts) == "one ## two "
    assert reason is FinishReason.STOP


def test_what_could_become_a_stop_is_held_back_and_released() -> None:
    written = detokenizer("END")
    texts, _ = push_all(written, b"xENx")

    assert texts == ["x", "", "", "ENx"]


def test_the_earliest_of_several_stops_wins() -> None:
    written = detokenizer("world", "lo w")
    texts, _ = push_all(written, b"hello world")

    assert "".join(texts) == "hel"
    assert written.stopped_by == "lo w"


def test_held_text_is_released_when_the_budget_ends() -> None:
    texts, reason = push_all(detokenizer("abcd", tokens_max=3), b"abc")

    assert "".join(texts) == "abc"
    assert reason is FinishReason.LENGTH


def test_the_end_token_shows_nothing() -> None:
    assert detokenizer().push(END) == ("", FinishReason.STOP)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_transcript_replayed_from_its_ids_goes_on_alike(cut: int) -> None:
    data = "one 你好 ## two 🙂 ###".encode()
    whole, _ = push_all(detokenizer("###"), data)
    again = detokenizer("###")
    before, _ = push_all(again, data[:cut])

    after, _ = push_all(again, data[cut:])

    assert before + after == whole
