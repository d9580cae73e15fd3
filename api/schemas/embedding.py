"""The body of `POST /v1/embeddings`."""

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.base import Duration, Strict, Texts, texts_max

INPUTS_MAX = 2048


class EmbeddingRequest(Strict):
    """Inputs to embed."""

    model: str = Field(min_length=1, max_length=200)
    """The model's name, as `GET /v1/models` lists it."""
    input: Annotated[Texts, texts_max(INPUTS_MAX)]
    """The text, or several texts, or their token ids."""
    encoding_format: Literal["float", "base64"] | None = None
    """Return vectors as numbers, or as base64 of little-endian single-precision numbers."""
    dimensions: int | None = Field(None, ge=1)
    """Keep this many of each vector's first numbers, for models trained for it."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """vLLM's extension: keep this many tokens of each input; -1 keeps all that fit."""
    keep_alive: Duration | None = None
    """How long a host keeps the model loaded after this request, in seconds or as a text like `10m`, as Ollama defines
    it: 0 unloads it at once, and a negative number keeps it for ever. Other models are served as before."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""


class EngineEmbeddingRequest(EmbeddingRequest):
    model: str = Field("", max_length=200)
    """The model's name; it is the path's, if it is given at all."""
