"""`POST /v1/chat/completions`."""

import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.chat import ChatCompletionRequest
from api.stored_chats import StoredChat
from api.terms import Terms, terms_of
from api.work import Work, chat_work

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves, after its grace."""
    began = time.monotonic()
    work = await chat_work(house.admission, body, terms, keep_s=house.settings.response_ttl_s)
    if body.store:
        work = replace(work, record=house.chats.stored(_stored(work, body)))
    return await (stream(house, work, terms, began) if body.stream else whole(house, work, terms, request))


def _stored(work: Work, body: ChatCompletionRequest) -> StoredChat:
    return StoredChat(
        id=work.job.id,
        tenant=work.job.tenant,
        model=work.job.model,
        created_ms=work.job.created_ms,
        metadata=body.metadata or {},
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        view=work.view.encode(),
    )
