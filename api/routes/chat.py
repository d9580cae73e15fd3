"""`POST /v1/chat/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.formats.chat import WholeChat
from api.house import House, house_of
from api.schemas.chat import ChatCompletionRequest
from api.terms import Terms, terms_of
from api.view import view_of

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves, after its grace."""
    began = time.monotonic()
    job = await house.admission.chat(body, terms)
    view = view_of(job, include_usage=bool(body.stream_options and body.stream_options.include_usage))
    if not body.stream:
        return await whole(house, job, view, terms, WholeChat, request)
    return await stream(house, job, view, terms, began)
