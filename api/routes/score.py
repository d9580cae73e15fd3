"""`POST /v1/score`, `/v1/pooling` and `/v1/classify`, vLLM's endpoints for models that write no text."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.formats.score import joined
from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.score import ClassifyRequest, PoolingRequest, ScoreRequest
from api.serving.respond import respond_joined, respond_whole
from api.serving.score_submission import pooling_submission, score_submissions
from api.serving.services import ServicesDep
from shared.domain.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/score", response_model=None)
async def score(body: ScoreRequest, request: Request, options: RequestOptionsDep, services: ServicesDep) -> Response:
    """Score pairs of texts: by a cross-encoder, or by the cosine of embeddings. Several texts of `text_1` are compared
    each with the one in its place, by a job for each pair, which an Idempotency-Key does not find again."""
    submissions = await score_submissions(services, body, options)
    if len(submissions) == 1:
        return await respond_whole(services, submissions[0], options, request)
    return await respond_joined(services, submissions, options, request, joined)


@router.post("/v1/pooling", response_model=None)
async def pool(body: PoolingRequest, request: Request, options: RequestOptionsDep, services: ServicesDep) -> Response:
    """Create a vector of unit length for each input, in vLLM's form of pooled data."""
    return await respond_whole(services, await pooling_submission(services, body, options), options, request)


@router.post("/v1/classify", response_model=None)
async def classify(body: ClassifyRequest, options: RequestOptionsDep, services: ServicesDep) -> Response:
    """Refuse to classify, by the model's name: no model here has labels. Cross-encoders answer `/v1/score`."""
    priority = services.admission.priority(options, None)
    first, *_ = await services.model_router.models_for(body.model, options.caller, priority=priority)
    message = f"The model '{first.name}' has no labels to classify by: ask /v1/score, /v1/rerank or /v1/embeddings."
    raise InvalidRequest(message, param="model")
