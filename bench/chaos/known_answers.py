"""Answers that follow from their questions, for servers and classes without a model. Imports nothing of Penstock."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

WORDS = 100
FIRST_TOKEN, TOKENS = 400, 1000  # of the built-in model's vocabulary, without its special tokens and bytes


def parts(question: str, body: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the name of the tool that is called, if any, and the parts of the text or of the call's arguments."""
    words = [f" w{_hash(f'{question} {position}') % 1000}" for position in range(WORDS)]
    if tools := body.get("tools"):
        return str(tools[0]["function"]["name"]), ['{"city": "', *words[:30], '"}']
    if body.get("response_format") or body.get("structured_outputs"):
        return "", ['{"name": "', *words[:30], '"}']
    return "", words


def left_of(words: Sequence[str], said: str) -> list[str]:
    """Return what is left to say. Raises ValueError if something else was said."""
    whole = "".join(words)
    if not whole.startswith(said):
        raise ValueError(f"the answer does not begin with {said!r}")
    rest = list(words)
    while said:
        word = rest.pop(0)
        if not said.startswith(word):
            rest.insert(0, word.removeprefix(said))
        said = said[len(word) :]
    return rest


def next_token(ids: Sequence[int]) -> int:
    """Return the token that follows these, which depends on each of them and on their number."""
    return FIRST_TOKEN + (31 * sum(ids) + 7 * len(ids)) % TOKENS


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
