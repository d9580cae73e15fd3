"""The body of `POST /v1/moderations`."""

from typing import Annotated, Any

from pydantic import Field

from api.schemas.base import Items, Strict

TEXTS_MAX = 1000
Part = Annotated[dict[str, Any], Items(8)]


class ModerationRequest(Strict):
    model: str | None = Field(None, max_length=200)
    """The moderation server's model. Default: its own."""
    input: str | Annotated[list[str], Items(TEXTS_MAX, least=1)] | Annotated[list[Part], Items(TEXTS_MAX, least=1)]
    """A text, several texts, or the parts of one input, as the moderation server takes them."""
