"""`POST /v1/chat/completions`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.exchange import respond
from api.house import House, house_of
from api.json_route import JsonRoute
from api.schemas.chat import ChatCompletionRequest
from api.terms import Terms, terms_of
from api.work import chat_work

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    terms: Annotated[Terms, Depends(terms_of)],
    house: Annotated[House, Depends(house_of)],
) -> Response:
    """A chat completion, streamed or whole. The job is cancelled when the client leaves, after its grace."""
    work = await chat_work(house, body, terms, store=bool(body.store))
    return await respond(house, work, terms, request, streamed=bool(body.stream))
