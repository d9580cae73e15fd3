"""The body of `POST /v1/batches`."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Metadata, Strict


class OutputExpiresAfter(Strict):
    anchor: Literal["created_at"]
    """Must be `created_at`."""
    seconds: int = Field(ge=3600, le=30 * 86400)
    """The lifetime of the output files, in seconds."""


class BatchRequest(Strict):
    """A batch to start. OpenAI allows only `24h` as `completion_window`."""

    input_file_id: str = Field(min_length=1, max_length=200)
    """The uploaded file with the requests, one a line."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    """The endpoint of all requests in the file."""
    completion_window: str = Field(pattern=r"^[1-9]\d{0,2}h$")
    """The hours that the batch may take, like `24h`."""
    metadata: Metadata | None = None
    """Names and values kept with the batch."""
    output_expires_after: OutputExpiresAfter | None = None
    """When the output files expire."""
