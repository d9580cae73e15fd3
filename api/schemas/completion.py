"""The body of `POST /v1/completions`."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from api.schemas.base import Texts, listed, texts_max
from api.schemas.sampling import GenerationRequest
from shared.domain.errors import InvalidRequest

PROMPTS_MAX = 128
CHOICES_MAX = 256  # over all prompts


class CompletionRequest(GenerationRequest):
    """A completion to create. With `echo`, `logprobs` covers the prompt's tokens, too."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.NEUTRAL,
        "add_special_tokens": (True,),
        "suffix": ("",),
    }

    prompt: Annotated[Texts, texts_max(PROMPTS_MAX)]
    """The text to continue, or several texts, or their token ids."""
    max_tokens: int | None = Field(16, ge=-1)
    """The longest answer, in tokens; -1 allows the rest of the context."""
    best_of: int | None = Field(None, ge=1)
    """Generate this many candidates of each prompt and return the `n` likeliest."""
    echo: bool | None = None
    """Return the prompt before the answer."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return the log probability of each token, and of this many of the likeliest tokens at its position."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> "CompletionRequest":
        n, best_of = self.n or 1, self.best_of or self.n or 1
        if best_of < n:
            raise InvalidRequest(f"'best_of' must be at least 'n', which is {n}.", param="best_of")
        if best_of > n and self.stream:
            raise InvalidRequest("'best_of' cannot be streamed: the best is known at the end.", param="best_of")
        if len(listed(self.prompt)) * best_of > CHOICES_MAX:
            raise InvalidRequest(f"At most {CHOICES_MAX} choices over all prompts are allowed.", param="prompt")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("'max_tokens' may be 0 only with 'echo': true.", param="max_tokens")
        return self
