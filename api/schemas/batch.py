"""The body of `POST /v1/batches`."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Metadata, Strict


class OutputExpiresAfter(Strict):
    anchor: Literal["created_at"]
    """Always `created_at`."""
    seconds: int = Field(ge=3600, le=30 * 86400)
    """Lifetime of the output files."""


class BatchRequest(Strict):
    """`completion_window`: hours, like 24h; OpenAI knows no other."""

    input_file_id: str = Field(min_length=1, max_length=200)
    """The uploaded file that has the requests, one a line."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    """The endpoint that all lines are for."""
    completion_window: str = Field(pattern=r"^[1-9]\d{0,2}h$")
    """Hours that the batch may take, like `24h`."""
    metadata: Metadata | None = None
    """Names and values kept with the batch."""
    output_expires_after: OutputExpiresAfter | None = None
    """When the output files expire."""
