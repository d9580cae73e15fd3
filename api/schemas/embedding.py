"""The body of `POST /v1/embeddings`."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from api.schemas.base import Strict

INPUTS_MAX = 2048
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class EmbeddingRequest(Strict):
    """`truncate_prompt_tokens`, vLLM's extension: keep so many tokens of each input, -1 for all that fit."""

    model: str = Field(min_length=1, max_length=200)
    input: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=INPUTS_MAX)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    # It identifies the caller; it cannot change an answer.
    user: str | None = Field(None, max_length=512)

    @field_validator("input", mode="wrap")
    @classmethod
    def _one_reason(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(
                f"a text, a list of 1 to {INPUTS_MAX} texts, token ids or a list of 1 to {INPUTS_MAX} lists of them is "
                "expected, none of them empty"
            ) from None

    @property
    def inputs(self) -> list[str | list[int]]:
        """One text, or one list of token ids, for each vector."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [item for item in self.input if not isinstance(item, int)]
