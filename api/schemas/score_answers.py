"""The answers of scores, pooled vectors and token checks, as the documentation shows them."""

from typing import Literal

from pydantic import BaseModel

from api.schemas.answers import PromptUsage


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreUsage(PromptUsage):
    completion_tokens: int


class ScoreList(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: ScoreUsage


class PooledVector(BaseModel):
    index: int
    object: Literal["pooling"]
    data: list[float] | str


class PooledList(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledVector]
    usage: PromptUsage


class CheckedPrompt(BaseModel):
    fits: bool
    tokenCount: int
    contextLength: int


class CheckedPrompts(BaseModel):
    prompts: list[CheckedPrompt]


class NoClasses(BaseModel):
    """There is none: every model here refuses to classify."""
