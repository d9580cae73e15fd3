"""The bodies of `POST /v1/tokenize`, `/v1/detokenize` and `/v1/token_count`."""

from typing import Annotated

from pydantic import Field, model_validator

from api.schemas.base import Items, Strict
from api.schemas.chat import Messages, TemplateOptions
from api.schemas.tools import Tools

TOKENS_MAX = 1_000_000
CHECKS_MAX = 64  # prompts, each of which is a job
TEXT_MAX = 1_000_000  # characters; longer texts and their token lists would keep an API process busy


class Counted(Strict):
    """A text or a chat to tokenise: exactly one of `prompt` and `messages`."""

    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    prompt: str | None = Field(None, max_length=TEXT_MAX)
    """The text to split into tokens."""
    messages: Messages | None = None
    """The messages of a chat to split into tokens, in the model's template."""
    tools: Tools | None = None
    """The functions that the chat may call."""
    chat_template_kwargs: TemplateOptions | None = None
    """Further variables for the model's chat template."""
    add_special_tokens: bool = True
    """Add the special tokens that belong around a text."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "Counted":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages must be given")
        if self.prompt is not None and (self.tools or self.chat_template_kwargs):
            raise ValueError("'tools' and 'chat_template_kwargs' are only allowed with 'messages'")
        return self


class TokenizeRequest(Counted):
    return_token_strs: bool = False
    """Return each token's text, too."""


class TokenCountRequest(Counted):
    """A text or a chat whose tokens are counted."""

    max_tokens: int = Field(0, ge=0)
    """The length in tokens of an answer that must fit the context, too."""


class DetokenizeRequest(Strict):
    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Items(TOKENS_MAX)]
    """The token ids to turn into text."""


class TokenCheckPrompt(Strict):
    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    prompt: str = Field(max_length=TEXT_MAX)
    """The text whose tokens are counted."""
    max_tokens: int = Field(0, ge=0)
    """The length in tokens of an answer that must fit the context, too."""


class TokenCheckRequest(Strict):
    """Prompts whose tokens are counted, as FastChat defines it."""

    prompts: Annotated[list[TokenCheckPrompt], Items(CHECKS_MAX, least=1)]
    """The prompts, each with its model."""
