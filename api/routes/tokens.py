"""`POST /v1/tokenize`, `/v1/detokenize`, `/v1/token_count`. A worker answers, since it has the model's tokenizer."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.formats.tokens import checks
from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.tokens import DetokenizeRequest, TokenCheckRequest, TokenCountRequest, TokenizeRequest
from api.serving.respond import respond_joined, respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import detokenize_submission, token_count_submission, tokenize_submission

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/tokenize", response_model=None)
async def tokenize(
    body: TokenizeRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Return the token ids of a text, or of a chat in the model's template."""
    return await respond_whole(services, await tokenize_submission(services, body, options), options, request)


@router.post("/v1/token_count", response_model=None)
async def count_tokens(
    body: TokenCountRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Count the tokens of a text or a chat, and say whether they and `max_tokens` more fit the model's context."""
    return await respond_whole(services, await token_count_submission(services, body, options), options, request)


@router.post("/v1/detokenize", response_model=None)
async def detokenize(
    body: DetokenizeRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Return the text of token ids."""
    return await respond_whole(services, await detokenize_submission(services, body, options), options, request)


@router.post("/api/v1/token_check", response_model=None)
async def check_tokens(
    body: TokenCheckRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Count the tokens of prompts and say whether each fits its model's context, as FastChat does."""
    counts = [TokenCountRequest(**prompt.model_dump()) for prompt in body.prompts]
    submissions = [await token_count_submission(services, count, options) for count in counts]
    return await respond_joined(services, submissions, options, request, checks)
