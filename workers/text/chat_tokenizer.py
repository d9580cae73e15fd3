"""A tokenizer of transformers as our engines' tokenizer."""

import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from shared.domain.errors import InvalidRequest
from shared.domain.job import Grammar
from workers.parsers.template_parser import TemplateParser, response_template
from workers.parsers.tool_formats import thinking_of, tool_format_of
from workers.parsers.tool_grammar import Tools, grammar_for, tools_of
from workers.scheduling.sequence import Constraint
from workers.text.chat_template import ChatTemplate
from workers.text.grammar import Grammars, Reasoning, compiler_of
from workers.text.tokenizer import Chat, plain_chat, require_fit

HALF = "\ufffd"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte token of SentencePiece


class ChatTokenizer:
    """Prompts are made by the model's own chat template; a model without one gets `role: content` lines."""

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: frozenset[int],
        *,
        vocabulary: int,
        make_compiler: Callable[[], Any] | None = None,
    ) -> None:
        """`make_compiler` is for a tokenizer that is none of transformers' but called like one: see `Grammars`."""
        self.eos_ids = eos_ids
        own = partial(compiler_of, tokenizer, vocabulary=vocabulary, eos_ids=eos_ids)
        self._grammars = Grammars(make_compiler or own)
        self._tokenizer = tokenizer
        self._decode = _decoder(tokenizer)
        self.token_chars_max = max(map(len, tokenizer.get_vocab()), default=1)
        self._bytes: dict[int, bytes] = {}
        self._before = tokenizer.encode(
            "a", add_special_tokens=False
        )  # tokenizers may strip the space at the beginning of a text
        self._template = ChatTemplate(tokenizer)
        self._tool_format = tool_format_of(self._template.text)
        self._thinking = thinking_of(self._template.text, self._token_of)
        self._own = getattr(tokenizer, "response_template", None) if self._tool_format is None else None
        taught = {"tools": self._calls_tools, "reasoning": self._thinking is not None, "structured_outputs": True}
        self.abilities = frozenset(name for name, can in taught.items() if can)

    def chat(self, request: Mapping[str, Any], wanted: Grammar | None = None, *, tokens_max: int | None = None) -> Chat:
        tools = tools_of(request)
        if tools:
            self._require_tools(tools)
        prompt = self._template.render(request, reasons=self._thinking is not None)
        if tokens_max is not None:
            require_fit(len(prompt.text), self, tokens_max, param="messages")
        ids = self._template.encode(prompt)
        if not (tools or self._thinking or self._own):
            return plain_chat(ids, self, wanted)
        begun = bool(self._thinking and prompt.text.rstrip().endswith(self._thinking.opening))
        hidden = frozenset(self._tokenizer.all_special_ids) - self._shown(tools)
        tool_format = self._tool_format if tools else None
        grammar = grammar_for(tools, tool_format, wanted, self._token_of) if tools and tool_format else wanted

        def make_parser(seed: str) -> TemplateParser:
            if self._own:
                return TemplateParser(self._own, seed=seed, tools=request.get("tools"), prompt=prompt.text)
            return TemplateParser(
                response_template(self._thinking, tool_format),
                seed=seed,
                reader=partial(tool_format.reader, tools.schemas) if tools and tool_format else None,
                parallel=bool(tools and tools.parallel),
                opened=self._thinking.opening if self._thinking and begun else "",
            )

        return Chat(
            ids=ids,
            decode=lambda answer: self._decode([id_ for id_ in answer if id_ not in hidden], skip_special_tokens=False),
            make_parser=make_parser,
            constraint=lambda: self._grammars.constraint(grammar, self._reasoning(begun)) if grammar else None,
        )

    def encode_text(self, text: str, tokens_max: int | None = None, *, special: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, truncation=tokens_max is not None, max_length=tokens_max, add_special_tokens=special, verbose=False
        ).input_ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            before, both = (
                self._decode(ids, skip_special_tokens=False) for ids in (self._before, [*self._before, token])
            )
            text = both.removeprefix(before)
            raw = str(self._tokenizer.convert_ids_to_tokens(token))
            self._bytes[token] = _part_of_a_character(raw) if HALF in text and HALF not in raw else text.encode()
        return self._bytes[token]

    def constraint(self, grammar: Grammar) -> Constraint:
        return self._grammars.constraint(grammar)

    def decode(self, ids: Seq[int], *, special: bool = False) -> str:
        return self._decode(ids, skip_special_tokens=not special)

    @property
    def _calls_tools(self) -> bool:
        return self._tool_format is not None or "tool_calls" in (self._own or {}).get("fields", {})

    def _require_tools(self, tools: Tools) -> None:
        if not self._calls_tools:
            raise InvalidRequest("This model's chat template does not support tool calls.", param="tools")
        if self._tool_format is None and tools.forced:
            raise InvalidRequest(
                "'tool_choice' must be 'auto': this model cannot be forced to call a tool.", param="tool_choice"
            )

    def _shown(self, tools: Tools | None) -> frozenset[int]:
        """The special tokens that the parser must read; the others are hidden."""
        if self._own:
            return frozenset(self._tokenizer.all_special_ids)
        marks = (self._thinking or ()) + (self._tool_format.marks if tools and self._tool_format else ())
        return frozenset(token for mark in marks if (token := self._token_of(mark)) is not None)

    def _reasoning(self, begun: bool) -> Reasoning | None:
        if self._thinking is None:
            return None
        added = self._tokenizer.get_added_vocab()
        return Reasoning(added[self._thinking.opening], added[self._thinking.closing], begun)

    def _token_of(self, mark: str) -> int | None:
        """The id of a mark that is one token of its own; None for any other."""
        token = self._tokenizer.get_added_vocab().get(mark)
        return None if token is None else int(token)


def _decoder(tokenizer: Any) -> Callable[..., str]:
    """Decode ids with `skip_special_tokens`, without cleaning spaces up. The library below does it in half the time
    that transformers' own method takes around it, unless the tokenizer's class has a way of its own."""
    own, usual = type(tokenizer), PreTrainedTokenizerFast
    if getattr(own, "_decode", None) is usual._decode and own.decode is usual.decode:
        direct: Callable[..., str] = tokenizer.backend_tokenizer.decode
        return direct
    return partial(tokenizer.decode, clean_up_tokenization_spaces=False)


def _part_of_a_character(raw: str) -> bytes:
    """The bytes of a token that is no text by itself, from its name in the vocabulary."""
    if byte := BYTE.fullmatch(raw):
        return bytes([int(byte[1], 16)])
    return bytes(BYTE_OF[character] for character in raw if character in BYTE_OF)


def _byte_level() -> dict[str, int]:
    """The bytes behind the characters of byte-level vocabularies, GPT-2's first: printable bytes stand for themselves,
    the others begin at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


BYTE_OF = _byte_level()
