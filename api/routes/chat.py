"""`POST /v1/chat/completions`."""

import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.http.request_options import RequestOptions, request_options_of
from api.routes.json_route import JsonRoute
from api.schemas.chat import ChatCompletionRequest
from api.serving.respond import respond_stream, respond_whole
from api.serving.services import Services, services_of
from api.serving.submission import Submission, chat_submission
from api.stores.stored_chats import StoredChat

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    options: Annotated[RequestOptions, Depends(terms_of)],
    services: Annotated[Services, Depends(house_of)],
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves, after its grace."""
    began = time.monotonic()
    submission = await chat_submission(services.admission, body, options, keep_s=services.settings.response_ttl_s)
    if body.store:
        submission = replace(submission, record=services.chats.stored(_stored(submission, body)))
    return await (
        respond_stream(services, submission, options, began)
        if body.stream
        else respond_whole(services, submission, options, request)
    )


def _stored(submission: Submission, body: ChatCompletionRequest) -> StoredChat:
    return StoredChat(
        id=submission.job.id,
        tenant=submission.job.tenant,
        model=submission.job.model,
        created_ms=submission.job.created_ms,
        metadata=body.metadata or {},
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        render_options=submission.render_options.encode(),
    )
