"""A tokenizer of transformers as our engines' tokenizer."""

import logging
from collections.abc import Sequence as Seq
from typing import Any

from jinja2.exceptions import TemplateError

from shared.errors import InvalidRequest

log = logging.getLogger(__name__)


class ChatTokenizer:
    """Prompts by the model's own chat template; a model without one gets `role: content` lines."""

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        self.ends = ends
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            log.warning("the model has no chat template; prompts are plain 'role: content' lines")

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

    def decode(self, ids: Seq[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
