"""The vocabulary and the chat template of a GGUF file, with the verbs of transformers' tokenizers that
`workers.text.chat_tokenizer` calls, so that prompts, tool calls, reasoning and grammars are those of every other model.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import llama_cpp
import llguidance
from transformers.utils.chat_template_utils import render_jinja_template

from workers.engines.llamacpp.library import LlamaModel
from workers.text.chat_tokenizer import ChatTokenizer

CONTROL, USER_DEFINED, UNKNOWN = 1 << 3, 1 << 4, 1 << 0  # llama_token_attr
PIECES = 1  # llama_vocab_type: SentencePiece, whose first token may get a space before it
NAMES: dict[str, Callable[[Any], int]] = {
    "bos_token": llama_cpp.llama_vocab_bos,
    "eos_token": llama_cpp.llama_vocab_eos,
    "pad_token": llama_cpp.llama_vocab_pad,
    "sep_token": llama_cpp.llama_vocab_sep,
}


class GgufTokenizer:
    """Not of transformers, but called like one of its tokenizers."""

    def __init__(self, model: LlamaModel) -> None:
        self._vocabulary = model.vocabulary
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))
        self.chat_template = model.template()
        self.special_tokens = {name: text for name, find in NAMES.items() if (text := self._text_of(find))}
        pieces = llama_cpp.llama_vocab_type(self._vocabulary) == PIECES
        self._strips = pieces and model.metadata.get("tokenizer.ggml.add_space_prefix", "true") == "true"
        attributes = [llama_cpp.llama_vocab_get_attr(self._vocabulary, id_) for id_ in range(self.size)]
        self.all_special_ids = [id_ for id_, has in enumerate(attributes) if has & (CONTROL | UNKNOWN)]
        self._special = frozenset(self.all_special_ids)
        self._added = [id_ for id_, has in enumerate(attributes) if has & (CONTROL | USER_DEFINED)]
        self.all_special_tokens = list(map(self.convert_ids_to_tokens, self.all_special_ids))

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends an answer: the end of the text, of a turn, of a message."""
        return frozenset(id_ for id_ in range(self.size) if llama_cpp.llama_vocab_is_eog(self._vocabulary, id_))

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes that each token adds to a text; those of a special token are its name."""
        buffer = ctypes.create_string_buffer(256)
        return [self._piece(id_, buffer) for id_ in range(self.size)]

    def __call__(
        self,
        text: str | list[str],
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = False,
    ) -> SimpleNamespace:
        """`input_ids` of a text, or of each."""
        how = {"special": add_special_tokens, "parse": not split_special_tokens}
        if isinstance(text, str):
            ids = self._cut(self._ids(text, **how), max_length if truncation else None, special=add_special_tokens)
            return SimpleNamespace(input_ids=ids)
        return SimpleNamespace(input_ids=[self._ids(each, **how) for each in text])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._ids(text, special=add_special_tokens, parse=True)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False, **_: Any) -> str:
        hidden = self._special if skip_special_tokens else frozenset()
        text = b"".join(self.pieces[id_] for id_ in ids if id_ not in hidden and id_ < self.size)
        return (text.removeprefix(b" ") if self._strips else text).decode(errors="replace")

    def convert_ids_to_tokens(self, id_: int) -> str:
        """The token's name in the vocabulary."""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocabulary, id_)
        return text.decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        return {self.convert_ids_to_tokens(id_): id_ for id_ in range(self.size)}

    def get_added_vocab(self) -> dict[str, int]:
        return {self.convert_ids_to_tokens(id_): id_ for id_ in self._added}

    def apply_chat_template(
        self,
        conversation: Seq[Mapping[str, Any]],
        tools: Seq[Mapping[str, Any]] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        **told: Any,
    ) -> str:
        """The prompt of a chat, rendered by transformers in its sandbox."""
        rendered, _ = render_jinja_template(
            conversations=[conversation],
            tools=tools,
            documents=documents,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **self.special_tokens,
            **told,
        )
        text: str = rendered[0]
        return text

    def pair(self, query: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the second text of a pair whose first one is the query."""
        adds = {
            "bos": llama_cpp.llama_vocab_get_add_bos(self._vocabulary),
            "eos": llama_cpp.llama_vocab_get_add_eos(self._vocabulary),
            "sep": llama_cpp.llama_vocab_get_add_sep(self._vocabulary),
        }
        bos, sep = llama_cpp.llama_vocab_bos(self._vocabulary), llama_cpp.llama_vocab_sep(self._vocabulary)
        eos = llama_cpp.llama_vocab_eos(self._vocabulary)
        end = [eos if eos >= 0 else sep] * adds["eos"]
        first = self(query, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*[bos] * adds["bos"], *first, *end, *[sep] * adds["sep"]], end

    def compiler(self) -> Any:
        """The vocabulary as llguidance sees it."""
        wrapped = llguidance.TokenizerWrapper(_Bytes(self))
        return llguidance.LLTokenizer(wrapped, n_vocab=self.size, eos_token=sorted(self.eos_ids))

    def _ids(self, text: str, *, special: bool, parse: bool) -> list[int]:
        raw = text.encode(errors="replace")
        count = len(raw) + 8
        while True:
            ids = (llama_cpp.llama_token * count)()
            got = llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), ids, count, special, parse)
            if got >= 0:
                return list(ids[:got])
            count = -got

    def _cut(self, ids: list[int], tokens_max: int | None, *, special: bool) -> list[int]:
        """The ids, at most `tokens_max`; one that ends the whole text ends the cut one, too."""
        if tokens_max is None or len(ids) <= tokens_max:
            return ids
        ends = special and tokens_max > 0 and ids[-1] in self._special
        return [*ids[: tokens_max - 1], ids[-1]] if ends else ids[:tokens_max]

    def _piece(self, id_: int, buffer: Any) -> bytes:
        size = llama_cpp.llama_token_to_piece(self._vocabulary, id_, buffer, len(buffer), 0, True)
        if size < 0:
            return self._piece(id_, ctypes.create_string_buffer(-size))
        return bytes(buffer.raw[:size])

    def _text_of(self, find: Callable[[Any], int]) -> str:
        id_ = find(self._vocabulary)
        return self.convert_ids_to_tokens(id_) if id_ >= 0 else ""


class _Bytes:
    """The vocabulary as llguidance wants it wrapped."""

    def __init__(self, tokenizer: GgufTokenizer) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = None
        self.tokens = tokenizer.pieces
        self.special_token_ids = tokenizer.all_special_ids
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids


class GgufChatTokenizer(ChatTokenizer):
    """The tokenizer of a GGUF file as our engines' tokenizer."""

    def __init__(self, tokenizer: GgufTokenizer) -> None:
        super().__init__(tokenizer, tokenizer.eos_ids, vocabulary=tokenizer.size, make_compiler=tokenizer.compiler)
        self._pieces = tokenizer.pieces

    def token_bytes(self, token: int) -> bytes:
        return self._pieces[token]
