"""`POST /v1/chat/completions`."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.chat import ChatCompletionRequest
from api.serving.respond import respond
from api.serving.services import ServicesDep
from api.serving.submission import chat_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    options: RequestOptionsDep,
    services: ServicesDep,
) -> Response:
    """Create a chat completion, streamed or complete. The job is cancelled after its grace when the client leaves."""
    submission = await chat_submission(services, body, options, store=bool(body.store))
    return await respond(services, submission, options, request, streamed=bool(body.stream))
