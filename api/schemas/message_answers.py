"""The bodies of the Messages API's answers, as `/docs` and `/openapi.json` show them. They validate nothing: the
formats write the answers, and a test compares the two."""

from typing import Any, Literal

from pydantic import BaseModel


class TextOutput(BaseModel):
    type: Literal["text"]
    text: str


class ThinkingOutput(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseOutput(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingTokens(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """`input_tokens` leaves out those that came from the prefix cache. `estimated` is true, and only there then, if the
    tokens of a model without a tokenizer were not counted."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    service_tier: Literal["priority", "standard", "batch"]
    estimated: Literal[True] | None = None


class MessageAnswer(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextOutput | ThinkingOutput | ToolUseOutput]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class MessageInputTokens(BaseModel):
    input_tokens: int
