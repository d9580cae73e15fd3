"""A tokenizer of transformers as our engines' tokenizer."""

import re
from collections.abc import Sequence as Seq
from typing import Any

from jinja2.exceptions import TemplateError

from shared.errors import InvalidRequest
from shared.job import Grammar
from workers.engine.grammar import Grammars
from workers.sequence import Constraint

HALF = "\ufffd"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte


class ChatTokenizer:
    """Prompts by the model's own chat template; a model without one gets `role: content` lines."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], *, vocabulary: int) -> None:
        self.ends = ends
        self._grammars = Grammars(tokenizer, vocabulary=vocabulary, ends=ends)
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        self._before = tokenizer.encode("a", add_special_tokens=False)  # tokenizers may strip what begins a text

    def encode_chat(self, messages: Seq[dict[str, Any]]) -> list[int]:
        if not self._tokenizer.chat_template:
            lines = [f"{message['role']}: {message['content']}" for message in messages]
            plain: list[int] = self._tokenizer.encode("\n".join([*lines, "assistant:"]))
            return plain
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return ids

    def encode_text(self, text: str, tokens_max: int | None = None) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, truncation=tokens_max is not None, max_length=tokens_max, verbose=False
        ).input_ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            before, both = (
                self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                for ids in (self._before, [*self._before, token])
            )
            text = both.removeprefix(before)
            raw = str(self._tokenizer.convert_ids_to_tokens(token))
            self._bytes[token] = _part_of_a_character(raw) if HALF in text and HALF not in raw else text.encode()
        return self._bytes[token]

    def constraint(self, grammar: Grammar) -> Constraint:
        return self._grammars.constraint(grammar)

    def decode(self, ids: Seq[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _part_of_a_character(raw: str) -> bytes:
    """The bytes of a token that is no text by itself, from its name in the vocabulary."""
    if byte := BYTE.fullmatch(raw):
        return bytes([int(byte[1], 16)])
    return bytes(BYTE_OF[character] for character in raw if character in BYTE_OF)


def _byte_level() -> dict[str, int]:
    """How byte-level vocabularies, GPT-2's first, write bytes: printable ones as they are, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


BYTE_OF = _byte_level()
