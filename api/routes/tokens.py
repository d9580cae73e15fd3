"""`POST /v1/tokenize`, `/v1/detokenize`, `/v1/token_count`. A worker answers, since it has the model's tokenizer."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.formats.common import WholeOnly
from api.formats.tokens import TextCollector, TokenCountCollector, TokenListCollector
from api.http.request_options import RequestOptionsDep
from api.routes.json_route import JsonRoute
from api.schemas.tokens import DetokenizeRequest, TokenCountRequest, TokenizeRequest
from api.serving.render_options import render_options_of
from api.serving.respond import respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import Submission

router = APIRouter(route_class=JsonRoute)
ServicesDep = ServicesDep


@router.post("/v1/tokenize", response_model=None)
async def tokenize(
    body: TokenizeRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Return the token ids of a text, or of a chat in the model's template."""
    job = await services.admission.tokens(body, options, texts=body.return_token_strs)
    length = (await services.model_registry.model(body.model)).context_length
    submission = Submission(
        job, render_options_of(job), WholeOnly(lambda made: TokenListCollector(made, context_length=length))
    )
    return await respond_whole(services, submission, options, request)


@router.post("/v1/token_count", response_model=None)
async def count_tokens(
    body: TokenCountRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Count the tokens of a text or a chat, and say whether they and `max_tokens` more fit the model's context."""
    job = await services.admission.tokens(body, options)
    length = (await services.model_registry.model(body.model)).context_length
    formatter = WholeOnly(lambda made: TokenCountCollector(made, context_length=length, max_tokens=body.max_tokens))
    return await respond_whole(services, Submission(job, render_options_of(job), formatter), options, request)


@router.post("/v1/detokenize", response_model=None)
async def detokenize(
    body: DetokenizeRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Return the text of token ids."""
    job = await services.admission.text_of(body, options)
    return await respond_whole(
        services, Submission(job, render_options_of(job), WholeOnly(TextCollector)), options, request
    )
