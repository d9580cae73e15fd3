"""`POST /v1/completions`."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.completion import CompletionRequest
from api.serving.respond import respond
from api.serving.services import ServicesDep
from api.serving.submission import completion_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", response_model=None)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    options: RequestOptionsDep,
    services: ServicesDep,
) -> Response:
    """Continue each prompt, streamed or complete. The job is cancelled after its grace when the client leaves."""
    submission = await completion_submission(services, body, options)
    return await respond(services, submission, options, request, streamed=bool(body.stream))
