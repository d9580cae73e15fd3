"""The body of `POST /v1/embeddings`."""

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.base import Strict, Texts, texts_max

INPUTS_MAX = 2048


class EmbeddingRequest(Strict):
    """`truncate_prompt_tokens`, vLLM's extension: keep so many tokens of each input, -1 for all that fit."""

    model: str = Field(min_length=1, max_length=200)
    input: Annotated[Texts, texts_max(INPUTS_MAX)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    # It identifies the caller; it cannot change an answer.
    user: str | None = Field(None, max_length=512)
