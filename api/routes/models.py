"""`GET /v1/models` and one model."""

from typing import Any

from fastapi import APIRouter, Request

from api.http.auth import caller_of, may_use, require_use
from api.serving.services import ServicesDep
from shared.domain.job import ModelInfo

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request, services: ServicesDep) -> dict[str, Any]:
    """List the models that the key may use."""
    found = [info for info in await services.model_registry.models() if may_use(caller_of(request), info.name)]
    return {"object": "list", "data": [_model(info) for info in found]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    require_use(caller_of(request), name)
    return _model(await services.model_registry.model(name))


def _model(info: ModelInfo) -> dict[str, Any]:
    """Return OpenAI's model object, with further fields."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "penstock",
        "parent": info.parent or None,
        "context_length": info.context_length,
        "capabilities": info.capabilities,
        "engine": info.engine,
        "resume": info.resume,
        "workers": info.workers,
        "waiting_jobs": info.waiting,
        "paused": info.paused,
    }
