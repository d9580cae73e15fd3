"""The protocol of tokenizers, which turn messages and texts into token ids, and ids into text."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

from shared.domain.errors import ContextLengthExceeded
from shared.domain.job import Grammar
from workers.parsers.output_parser import OutputParser, PlainParser
from workers.scheduling.sequence import Constraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt, and how its answers are read. `ids` is the whole prompt. `decode` turns an answer's ids into text, with
    the marks that its parser reads. `make_parser` makes a parser for one answer, from a seed for the ids of its tool
    calls. `constraint` makes a fresh constraint for one answer, or None."""

    ids: list[int]
    decode: Callable[[Seq[int]], str]
    make_parser: Callable[[str], OutputParser]
    constraint: Callable[[], Constraint | None]


class Tokenizer(Protocol):
    """`abilities` of the model beside plain text: tools, reasoning, structured_outputs. No token stands for more than
    `token_chars_max` characters, so a text of more than n times as many has more than n tokens."""

    eos_ids: frozenset[int]
    abilities: frozenset[str]
    token_chars_max: int

    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        """Render and encode a chat. Raises InvalidRequest, which names the parameter, if the model's template refuses
        the request or the model cannot do what it asks for; ContextLengthExceeded, early, for a prompt that must have
        more than `tokens_max` tokens."""

    def encode_text(self, text: str, tokens_max: int | None = None, *, special: bool = True) -> list[int]:
        """The ids of a text by itself, with the special tokens that belong around it, cut to `tokens_max`."""

    def decode(self, ids: Seq[int], *, special: bool = False) -> str:
        """Text without special tokens, unless `special`; U+FFFD stands for bytes that are no whole character."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the token adds inside a text."""

    def constraint(self, grammar: Grammar) -> Constraint:
        """A constraint for a new answer. Raises InvalidRequest for a grammar that cannot be used here."""


def plain_chat(ids: list[int], tokenizer: Tokenizer, wanted: Grammar | None) -> Chat:
    """A chat whose answers are text alone."""
    return Chat(
        ids=ids,
        decode=tokenizer.decode,
        make_parser=lambda seed: PlainParser(),
        constraint=lambda: tokenizer.constraint(wanted) if wanted else None,
    )


def require_fit(characters: int, tokenizer: Tokenizer, tokens_max: int, *, param: str) -> None:
    """Raise ContextLengthExceeded, without splitting it, for a text that is too long however it is split."""
    if characters > tokens_max * tokenizer.token_chars_max:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {tokens_max} tokens. However, your {param} of {characters} "
            f"characters have more. Please reduce the length of the {param}.",
            param=param,
        )
