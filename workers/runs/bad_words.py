"""The token ids of words that an answer must not have. vLLM leaves out some of them."""

from collections.abc import Sequence as Seq

from shared.domain.errors import InvalidRequest
from workers.protocols import Model

Words = tuple[tuple[int, ...], ...]


def bad_words_of(words: Seq[str], model: Model) -> Words:
    """Return the token ids of each word as it begins a text, and as it stands behind a space. Raises InvalidRequest for
    a word without tokens."""
    found: list[tuple[int, ...]] = []
    for word in words:
        begun, within = (
            tuple(model.tokenizer.encode_text(before + word.lstrip(), special=False)) for before in ("", " ")
        )
        if not begun:
            raise InvalidRequest("'bad_words' must not hold a word without tokens.", param="bad_words")
        found += [begun, within]
    return tuple(dict.fromkeys(found))
