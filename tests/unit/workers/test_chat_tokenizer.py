"""Tokenizers that split characters in different ways: the bytes of a token, and text token by token."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared.domain.errors import ContextLengthExceeded
from workers.loading.model_spec import BUILTIN
from workers.runs.detokenizer import IncrementalDetokenizer
from workers.text.chat_tokenizer import ChatTokenizer

TEXT = "Ein Fuchs läuft: 你好, 🦊!  Two  spaces\n\tand a tab."


def byte_level() -> Any:
    """A vocabulary like that of GPT-2, Qwen and Llama 3: every byte has a character of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Ein Fuchs and a tab"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> Any:
    """A vocabulary like SentencePiece's: a character without a token is split into tokens named after its bytes."""
    return AutoTokenizer.from_pretrained(BUILTIN)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_the_bytes_of_all_tokens_are_the_bytes_of_the_text(make: Any) -> None:
    tokenizer = make()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))

    assert b"".join(chat.token_bytes(token) for token in ids) == TEXT.encode()
    assert any(len(chat.token_bytes(token).decode(errors="ignore")) == 0 for token in ids), "no character was split"


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", [TEXT, "🙂🙂🙂🦊🙂 a", "日本語日本語🙂日本 a", " two  spaces "])
def test_an_answer_comes_out_token_by_token_as_it_decodes_at_once(make: Any, text: str) -> None:
    tokenizer = make()
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))
    ids = tokenizer.encode(text, add_special_tokens=False)
    written = IncrementalDetokenizer(chat.decode, eos_ids=frozenset(), stop=(), tokens_max=10_000)

    texts = [written.push(token)[0] for token in ids]

    assert "".join(texts) + written.end() == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_text_is_what_transformers_says(make: Any) -> None:
    tokenizer = make()
    chat = ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer))
    rng = random.Random(1)

    for _ in range(200):
        ids = [rng.randrange(len(tokenizer) + 3) for _ in range(12)]
        wanted = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert chat.decode(ids) == wanted


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked_itself() -> None:
    class Own(PreTrainedTokenizerFast):
        def _decode(self, token_ids: list[int], **kwargs: Any) -> str:
            return f"{len(token_ids)} tokens"

    tokenizer = Own(tokenizer_object=byte_level().backend_tokenizer)

    assert ChatTokenizer(tokenizer, frozenset(), vocabulary=len(tokenizer)).decode([1, 2]) == "2 tokens"


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
