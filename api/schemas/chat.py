"""The body of `POST /v1/chat/completions`. What is not supported is refused by name, never dropped in silence."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from api.schemas.base import Strict
from api.schemas.sampling import GenerationRequest
from shared.errors import InvalidRequest


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for param in ("tool_calls", "function_call", "audio", "refusal"):
                if data.pop(param, None):
                    raise InvalidRequest(f"'messages[].{param}' is not supported here.", param=f"messages.{param}")
            _refuse_media(data.get("content"))
        return data

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationRequest):
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "chat_template_kwargs": ({},),
        "function_call": ("none",),
        "functions": ([],),
        "metadata": ({},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("none",),
        "skip_special_tokens": (True,),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # These identify the caller; they cannot change an answer.
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
        return self


def _refuse_media(content: Any) -> None:
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", None):
            raise InvalidRequest(f"'messages' may not hold content of type '{kind}' here.", param="messages.content")
