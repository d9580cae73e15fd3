"""`POST /v1/chat/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import stream, whole
from api.formats.chat import ChatChunks, WholeChat
from api.house import House, house_of
from api.schemas.chat import ChatCompletionRequest

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, house: Annotated[House, Depends(house_of)]
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves."""
    began = time.monotonic()
    job = await house.admission.chat(body)
    if not body.stream:
        return await whole(house, job, WholeChat(job), request)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return await stream(house, job, ChatChunks(job, include_usage=include_usage), began)
