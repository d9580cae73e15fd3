"""The bodies of answers, as `/docs` and `/openapi.json` show them. They validate nothing: the formats write
the answers, and a test compares the two."""

from typing import Any, Literal

from pydantic import BaseModel


class TokenLikelihood(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenLikelihood):
    top_logprobs: list[TokenLikelihood]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprobs]
    refusal: None


class CallOfFunction(BaseModel):
    name: str
    arguments: str


class CallOfTool(BaseModel):
    id: str
    type: Literal["function"]
    function: CallOfFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[CallOfTool] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class CachedTokens(BaseModel):
    cached_tokens: int


class ReasoningTokens(BaseModel):
    reasoning_tokens: int


class PromptUsage(BaseModel):
    """`estimated` is true, and only there then, if the tokens of a model without a tokenizer were not counted."""

    prompt_tokens: int
    total_tokens: int
    estimated: bool | None = None


class TokenUsage(PromptUsage):
    completion_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class Generated(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: TokenUsage


class ChatCompletion(Generated):
    object: Literal["chat.completion"]
    service_tier: Literal["default", "flex", "priority"]
    choices: list[ChatChoice]
    metadata: dict[str, str] | None = None


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, list[Any]] | None
    finish_reason: str | None


class TextCompletion(Generated):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class InputTokens(BaseModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    estimated: bool | None = None


class ResponseError(BaseModel):
    code: str
    message: str


class OutputItem(BaseModel):
    """A message, a call of a tool or reasoning, by its type."""

    id: str
    type: str
    status: str
    role: str | None = None
    content: list[dict[str, Any]] | None = None
    summary: list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    namespace: str | None = None
    input: str | None = None
    action: dict[str, Any] | None = None
    encrypted_content: str | None = None


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[OutputItem]
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    usage: InputTokens | None
    instructions: str | None
    previous_response_id: str | None
    conversation: dict[str, str] | None
    background: bool
    store: bool
    metadata: dict[str, str]
    tools: list[dict[str, Any]]
    tool_choice: Any
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    service_tier: Literal["auto", "default", "flex", "priority"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class ResponseInputTokens(BaseModel):
    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedResponse(BaseModel):
    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[dict[str, Any]]
    usage: InputTokens


class ConversationObject(BaseModel):
    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class ModerationObject(BaseModel):
    """The moderation server's own answer."""

    id: str | None = None
    model: str | None = None
    results: list[dict[str, Any]]


class EmbeddingObject(BaseModel):
    """An embedding. `embedding` has numbers, or base64 of little-endian single-precision numbers."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: PromptUsage


class RankedText(BaseModel):
    text: str


class RankedDocument(BaseModel):
    index: int
    relevance_score: float
    document: RankedText | None = None


class RankedDocuments(BaseModel):
    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]
    usage: PromptUsage


class TokenList(BaseModel):
    object: Literal["tokens"]
    model: str
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenCount(BaseModel):
    """A token count. `fits` says whether these tokens and an answer of `max_tokens` fit the model's context."""

    object: Literal["token_count"]
    model: str
    count: int
    context_length: int
    fits: bool


class DetokenizedText(BaseModel):
    object: Literal["text"]
    model: str
    prompt: str


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    root: str
    """The model itself, or the one that an adapter adapts, as vLLM calls it."""
    context_length: int
    max_model_len: int
    """The same, as vLLM calls it."""
    capabilities: list[str]
    engine: str
    resume: Literal["exact", "prefill", "restart"] | None
    """Null, without capabilities, for a model that was never loaded."""
    workers: int
    waiting_jobs: int
    paused: bool
    stands_for: list[str] | None = None
    """The models that a route or an alias stands for; only these two have it."""
    spill_after_s: float | None = None
    """The wait from which a route's job goes to its next model; null is never."""


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class Page(BaseModel):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ChatCompletionPage(Page):
    data: list[ChatCompletion]


class StoredMessage(BaseModel):
    id: str
    role: str
    content: Any = None


class MessagePage(Page):
    data: list[StoredMessage]


class InputItemObject(BaseModel):
    id: str
    type: str
    status: str


class InputItemPage(Page):
    data: list[InputItemObject]


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True]


class FileObject(BaseModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str


class FilePage(Page):
    data: list[FileObject]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    """A batch. The time of a status that it has not reached is null."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchPage(Page):
    data: list[BatchObject]


class WebhookEndpoint(BaseModel):
    """A webhook endpoint. `secret` signs its deliveries; it is shown only when it is generated."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    events: list[str]
    created_at: int
    secret: str | None = None


class WebhookPage(Page):
    data: list[WebhookEndpoint]


class WebhookTest(BaseModel):
    object: Literal["webhook_test"]
    delivered: bool
    status_code: int | None
    error: str | None
