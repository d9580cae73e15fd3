"""The bodies of `POST /v1/score`, `/v1/pooling` and `/v1/classify`, as vLLM defines them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from api.schemas.base import Items, Strict, Text, Texts, texts_max
from api.schemas.embedding import INPUTS_MAX
from api.schemas.rerank import DOCUMENTS_MAX

PAIRS_MAX = 64
Sides = Text | Annotated[list[Text], Items(DOCUMENTS_MAX, least=1)]


class ScoreRequest(Strict):
    """Texts to compare: one with each of the others, or each with the one in its place."""

    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    text_1: Sides
    """The text that the others are compared with, or as many texts as `text_2` has."""
    text_2: Sides
    """The texts to compare."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Keep this many tokens of each text; -1 keeps all that fit."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""

    @property
    def query(self) -> str:
        return self.text_1 if isinstance(self.text_1, str) else self.text_1[0]

    @property
    def texts(self) -> list[str]:
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs to compare, if each text has its own; else none."""
        return list(zip(self.text_1, self.texts, strict=True)) if not _is_one(self.text_1) else []

    @model_validator(mode="after")
    def _as_many(self) -> "ScoreRequest":
        if _is_one(self.text_1):
            return self
        if len(self.text_1) != len(self.texts):
            raise ValueError("'text_1' must be one text, or as many as 'text_2'")
        if len(self.texts) > PAIRS_MAX:
            raise ValueError(f"at most {PAIRS_MAX} pairs are allowed, each of which is a job")
        return self


def _is_one(side: str | list[str]) -> bool:
    return isinstance(side, str) or len(side) == 1


class PoolingRequest(Strict):
    """Inputs whose vectors are wanted."""

    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    input: Annotated[Texts, texts_max(INPUTS_MAX)]
    """The text, or several texts, or their token ids."""
    task: Literal["embed"]
    """Only `embed` is done here: one vector of unit length for each input."""
    encoding_format: Literal["float", "base64"] | None = None
    """Return vectors as numbers, or as base64 of little-endian single-precision numbers."""
    dimensions: int | None = Field(None, ge=1)
    """Keep this many of each vector's first numbers, for models trained for it."""
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Keep this many tokens of each input; -1 keeps all that fit."""
    user: str | None = Field(None, max_length=512)
    """An identifier of the caller. It cannot change the answer."""


class ClassifyRequest(Strict):
    """Texts to classify, which no model here does."""

    model: str = Field("", max_length=200)
    """The model's name, as `GET /v1/models` lists it. Without one, or as `default`, the deployment's default model."""
    input: Any = None
    """The texts."""
