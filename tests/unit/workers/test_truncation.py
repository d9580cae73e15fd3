"""Of a conversation that is too long, the oldest messages are dropped until the rest fits, if the request allows it."""

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from shared.domain.job import Job
from tests.factories import make_job
from tests.unit.workers.test_generation import engine
from workers.runs.truncation import Rests, fitting_chat


def said(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"{role[0]}{at}"} for at, role in enumerate(roles)]


def rests_of(messages: list[dict[str, Any]]) -> list[str]:
    rests = Rests(messages)
    return [" ".join(message["content"] for message in rests[number]) for number in range(len(rests))]


def long_chat(*, drop_oldest: bool, **sampling: Any) -> Job:
    """Make a chat of 2 tokens for each of its 9 messages."""
    messages = said("system", *["user", "assistant"] * 4)
    return replace(make_job(**sampling), request={"messages": messages, "drop_oldest": drop_oldest})


def test_a_rest_begins_with_the_system_messages_and_a_message_of_the_user() -> None:
    rests = rests_of(said("system", "assistant", "user", "assistant", "tool", "user", "assistant"))

    assert rests == ["s0 a1 u2 a3 t4 u5 a6", "s0 u2 a3 t4 u5 a6", "s0 u5 a6"]


def test_the_last_request_stays_and_the_oldest_rounds_behind_it_go_with_their_results() -> None:
    rests = rests_of(said("user", "assistant", "tool", "assistant", "tool", "tool", "assistant"))

    assert rests == ["u0 a1 t2 a3 t4 t5 a6", "u0 a3 t4 t5 a6", "u0 a6"]


def test_a_conversation_without_a_user_is_left_as_it_is() -> None:
    assert rests_of(said("system", "assistant")) == ["s0 a1"]


@pytest.mark.parametrize(("context", "tokens"), [(19, 18), (18, 14), (11, 10), (10, 6), (7, 6)])
def test_the_longest_rest_that_fits_is_encoded(context: int, tokens: int) -> None:
    chat = fitting_chat(long_chat(drop_oldest=True), engine(context_length=context))

    assert len(chat.ids) == tokens


def test_the_answer_that_was_asked_for_has_room() -> None:
    chat = fitting_chat(long_chat(drop_oldest=True, max_tokens=9), engine(context_length=20))

    assert len(chat.ids) == 10


def test_nothing_is_dropped_unless_the_request_allows_it() -> None:
    assert len(fitting_chat(long_chat(drop_oldest=False), engine(context_length=10)).ids) == 18


def test_the_rests_of_a_long_conversation_are_not_all_in_memory() -> None:
    messages = said(*["user", "assistant"] * 5_000)
    tracemalloc.start()
    try:
        rests = Rests(messages)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(rests) == 5_000
    assert peak < 1_000_000
