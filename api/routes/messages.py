"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic defines them."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.messages import CountTokensRequest, MessagesRequest
from api.serving.respond import respond, respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import input_tokens_submission, message_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/messages", response_model=None)
async def create_message(
    body: MessagesRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Create a message, streamed or complete, as Anthropic's API does. The job is cancelled after its grace when the
    client leaves."""
    submission = await message_submission(services, body, options)
    return await respond(services, submission, options, request, streamed=bool(body.stream))


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_input_tokens(
    body: CountTokensRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Count the tokens of a message's prompt, as Anthropic's API does."""
    return await respond_whole(services, await input_tokens_submission(services, body, options), options, request)
