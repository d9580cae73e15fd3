"""`POST /v1/embeddings`."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.json_route import JsonRoute
from api.http.request_options import RequestOptionsDep
from api.schemas.embedding import EmbeddingRequest, EngineEmbeddingRequest
from api.serving.respond import respond_whole
from api.serving.services import ServicesDep
from api.serving.submission import embedding_submission
from shared.domain.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/embeddings", response_model=None)
async def create_embeddings(
    body: EmbeddingRequest,
    request: Request,
    options: RequestOptionsDep,
    services: ServicesDep,
) -> Response:
    """Create a vector of unit length for each input. The job is cancelled after its grace when the client leaves."""
    return await respond_whole(services, await embedding_submission(services, body, options), options, request)


@router.post("/v1/engines/{name:path}/embeddings", response_model=None)
async def create_engine_embeddings(
    name: str, body: EngineEmbeddingRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Create embeddings by the model in the path, as OpenAI's first clients asked for them."""
    if body.model not in ("", name):
        raise InvalidRequest(f"'model' must be '{name}', as in the path.", param="model")
    named = body.model_copy(update={"model": name})
    return await respond_whole(services, await embedding_submission(services, named, options), options, request)
