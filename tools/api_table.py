"""Writes docs/api.md from the request schemas: `python -m tools.api_table > docs/api.md`."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from api.schemas.batch import BatchRequest
from api.schemas.chat import ChatCompletionRequest, Message
from api.schemas.completion import CompletionRequest
from api.schemas.conversation import ConversationItemsRequest, ConversationRequest, ConversationUpdate
from api.schemas.embedding import EmbeddingRequest
from api.schemas.message_blocks import (
    ClientTool,
    DocumentBlock,
    ImageBlock,
    MessageParam,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from api.schemas.messages import CountTokensRequest, MessagesRequest, OutputConfig, ThinkingConfig
from api.schemas.moderation import ModerationRequest
from api.schemas.rerank import RerankRequest
from api.schemas.response import CompactRequest, InputTokensRequest, ResponseRequest
from api.schemas.score import PoolingRequest, ScoreRequest
from api.schemas.tokens import DetokenizeRequest, TokenCheckPrompt, TokenCountRequest, TokenizeRequest
from api.schemas.tools import CalledFunction, ToolCall

ENDPOINTS: dict[str, type[BaseModel]] = {
    "POST /v1/chat/completions": ChatCompletionRequest,
    "POST /v1/completions": CompletionRequest,
    "POST /v1/responses": ResponseRequest,
    "POST /v1/responses/input_tokens": InputTokensRequest,
    "POST /v1/responses/compact": CompactRequest,
    "POST /v1/conversations": ConversationRequest,
    "POST /v1/conversations/{conversation_id}": ConversationUpdate,
    "POST /v1/conversations/{conversation_id}/items": ConversationItemsRequest,
    "POST /v1/messages": MessagesRequest,
    "POST /v1/messages/count_tokens": CountTokensRequest,
    "POST /v1/embeddings": EmbeddingRequest,
    "POST /v1/moderations": ModerationRequest,
    "POST /v1/rerank": RerankRequest,
    "POST /v1/score": ScoreRequest,
    "POST /v1/pooling": PoolingRequest,
    "POST /v1/tokenize": TokenizeRequest,
    "POST /v1/token_count": TokenCountRequest,
    "POST /v1/detokenize": DetokenizeRequest,
    "A prompt of `POST /api/v1/token_check`": TokenCheckPrompt,
    "POST /v1/batches": BatchRequest,
    "A message of `messages`": Message,
    "A call of `tool_calls`": ToolCall,
    "The `function` of a call": CalledFunction,
    "A message of `POST /v1/messages`": MessageParam,
    "A `text` block": TextBlock,
    "An `image` block": ImageBlock,
    "A `document` block": DocumentBlock,
    "A `search_result` block": SearchResultBlock,
    "A `thinking` block": ThinkingBlock,
    "A `redacted_thinking` block": RedactedThinkingBlock,
    "A `tool_use` block": ToolUseBlock,
    "A `tool_result` block": ToolResultBlock,
    "A `tool_reference` block": ToolReferenceBlock,
    "A tool of `POST /v1/messages`": ClientTool,
    "The `thinking` of `POST /v1/messages`": ThinkingConfig,
    "The `output_config` of `POST /v1/messages`": OutputConfig,
}
IDENTIFYING = {"user", "safety_identifier", "prompt_cache_key", "client_metadata"}
UNREAD = {"budget_tokens", "data"}  # the bound of reasoning, and what only Anthropic can read of it
HEAD = """# What the API takes, field by field

Made from the code by `python -m tools.api_table > docs/api.md`; a test compares them. **Honoured**: it does what its
definition says. **Accepted**: it cannot change an answer. **Refused**: a 400 that names the
parameter, unless it has a value at which it changes nothing. A field that is not listed is refused as unknown.
"""
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "maxProperties": "at most {}",
    "pattern": "`{}`",
}


def main() -> None:
    print(HEAD)
    print("\n".join(line for name, model in ENDPOINTS.items() for line in _section(name, model)), end="")


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {name}\n"
    yield "| field | | what it may be |\n|---|---|---|"
    schema = model.model_json_schema()
    required = set(schema.get("required", ()))
    for field, about in schema["properties"].items():
        known = model.model_fields.get(field)  # a field with an alias is honoured
        effect = "accepted" if field in IDENTIFYING | UNREAD or (known and known.exclude) else "honoured"
        needed = " (required)" if field in required else ""
        yield f"| `{field}` | {effect} | {_words(about, schema.get('$defs', {}))}{needed} |"
    for field, values in sorted(getattr(model, "NEUTRAL", {}).items()):
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in values)
        yield f"| `{field}` | refused | {f'unless {neutral}' if values else ''} |"
    yield "\n"


def _words(about: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        fields = definitions[name].get("properties")
        return "{" + ", ".join(fields) + "}" if fields else _words(definitions[name], definitions)
    if options := about.get("anyOf") or about.get("oneOf"):
        words = [_words(option, definitions) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{json.dumps(about['const'])}`"
    kind = str(about.get("type", "anything"))
    if kind == "array" and about.get("items"):
        kind = f"list of {_words(about['items'], definitions)}"
    bounds = [text.format(about[name]) for name, text in BOUNDS.items() if name in about]
    return ", ".join([kind, *bounds]).replace("|", "\\|")


if __name__ == "__main__":
    main()
