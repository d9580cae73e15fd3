"""The submissions of what is asked about a response's input: how long it is, and a summary of it."""

from collections.abc import Sequence
from typing import Any

from api.formats.common import WholeOnly
from api.formats.compaction import CompactionCollector
from api.formats.tokens import ResponseInputTokensCollector
from api.http.request_options import RequestOptions
from api.schemas.response import CompactRequest, ResponseInput
from api.schemas.tools import tools_request
from api.serving.response_chat import chat_of, named_as_sent, require_own_tools
from api.serving.services import Services
from api.serving.submission import Submission, chat_job, conversation_request
from shared.domain.job import Kind

Json = dict[str, Any]


async def input_tokens_submission(
    services: Services, body: ResponseInput, options: RequestOptions, items: Sequence[Json]
) -> Submission:
    """Submit the count of the tokens that a response with these items reads."""
    require_own_tools(body, items, services.settings)
    with named_as_sent():
        chat = chat_of(body, items)
        tools = tools_request(chat.tools, chat.tool_choice, chat.parallel_tool_calls)
        asked = conversation_request(chat.messages, tools, chat.chat_template_kwargs, chat.reasoning_effort)
        request = {"special": True, "texts": False, **asked}
        job = await services.admission.job("tok", body.model, Kind.TOKENS, options, request=request)
    return Submission(job, WholeOnly(ResponseInputTokensCollector))


async def compaction_submission(
    services: Services, body: CompactRequest, options: RequestOptions, items: Sequence[Json]
) -> Submission:
    """Submit the summary of a conversation."""
    with named_as_sent():
        chat = chat_of(body, [*items, {"type": "compaction_trigger"}])
        chat.service_tier = body.service_tier
        job = await chat_job(services, chat, options, drop_oldest=body.truncation == "auto")
    said = [item for item in items if item["type"] == "message" and item["role"] == "user"]
    return Submission(job, WholeOnly(lambda made: CompactionCollector(made, said)))
