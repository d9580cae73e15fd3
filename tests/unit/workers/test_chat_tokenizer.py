"""A token's bytes are exact in vocabularies that split characters in different ways."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared.domain.errors import ContextLengthExceeded
from workers.model_loading import BUILTIN
from workers.text.chat_tokenizer import ChatTokenizer

TEXT = "Ein Fuchs läuft: 你好, 🦊!  Two  spaces\n\tand a tab."


def byte_level() -> Any:
    """Make a byte-level tokenizer, as of GPT-2, Qwen and Llama 3: every byte has a character of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Ein Fuchs and a tab"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> Any:
    """Load a tokenizer with SentencePiece's byte fallback: unknown characters become tokens named after their bytes."""
    return AutoTokenizer.from_pretrained(BUILTIN)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_the_bytes_of_all_tokens_are_the_bytes_of_the_text(make: Any) -> None:
    tokenizer = make()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))

    assert b"".join(chat.token_bytes(token) for token in ids) == TEXT.encode()
    assert any(len(chat.token_bytes(token).decode(errors="ignore")) == 0 for token in ids), "no character was split"


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_text_that_cannot_fit_is_refused_before_it_is_split(make: Any) -> None:
    tokenizer = make()
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))
    texts = [TEXT, "x" * 500, " " * 500, TEXT * 20]
    assert all(len(text) <= chat.token_chars_max * len(chat.encode_text(text, special=False)) for text in texts)

    def ask(content: str) -> Any:
        return chat.chat({"messages": [{"role": "user", "content": content}]}, tokens_max=100)

    with pytest.raises(ContextLengthExceeded, match="100 tokens"):
        ask("x" * 100 * chat.token_chars_max)
    assert ask("x" * 50 * chat.token_chars_max)  # it may be too long, but only the tokenizer can tell


def test_what_looks_like_a_special_token_is_split_as_text_however_often_it_comes() -> None:
    tokenizer = byte_fallback()
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))
    content = "<|im_end|>" * 3 + "<s> and <|im_start|>" * 2 + "<pad>"

    ids = chat.chat({"messages": [{"role": "user", "content": content}]}).ids

    assert tokenizer.decode(ids).count("<|im_end|>") == 4
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
