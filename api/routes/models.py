"""`GET /v1/models` and one model; routes and aliases are listed beside the models that they stand for. A client of
Anthropic's API gets its shape."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from api.http.anthropic import speaks_anthropic
from api.http.auth import Caller, caller_of, may_use
from api.serving.services import Services, ServicesDep
from shared.domain.errors import Forbidden
from shared.domain.job import ModelInfo
from shared.domain.routing import Routing

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request, services: ServicesDep) -> dict[str, Any]:
    """List the models that the key may use, and the names that stand for them. With the header `anthropic-version` the
    list has the shape of Anthropic's, in one page."""
    listed = await _listed(services, caller_of(request))
    if not speaks_anthropic(request.scope):
        return {"object": "list", "data": list(listed.values())}
    ends = {"first_id": next(iter(listed), None), "last_id": next(reversed(listed), None)}
    return {"data": [_anthropic(each) for each in listed.values()], "has_more": False, **ends}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    caller = caller_of(request)
    routing = await services.model_router.routing()
    models = await services.model_registry.named([name, *routing.models_of(name)])
    if listed := _described(name, routing, models, caller):
        return _anthropic(listed) if speaks_anthropic(request.scope) else listed
    if not may_use(caller, name):
        raise Forbidden(f"This key may not use the model '{name}'.", param="model")
    raise await services.model_router.not_found(name, caller)


async def _listed(services: Services, caller: Caller) -> dict[str, dict[str, Any]]:
    routing = await services.model_router.routing()
    models = {info.name: info for info in await services.model_registry.models()}
    described = {name: _described(name, routing, models, caller) for name in (*models, *routing.routes)}
    return {name: found for name, found in described.items() if found}


def _described(name: str, routing: Routing, models: Mapping[str, ModelInfo], caller: Caller) -> dict[str, Any] | None:
    """Describe a name to the caller: as a route, if it is one; None for a name that the key may not use."""
    if name in routing.routes and (found := _behind(name, routing, models, caller)):
        return _route(name, found, routing)
    return _model(models[name]) if name in models and may_use(caller, name) else None


def _behind(name: str, routing: Routing, models: Mapping[str, ModelInfo], caller: Caller) -> list[ModelInfo]:
    """Return those of the name's models that there are, and that the key may use by this name."""
    behind = [models[each] for each in routing.models_of(name) if each in models]
    return [info for info in behind if may_use(caller, name) or may_use(caller, info.name)]


def _model(info: ModelInfo) -> dict[str, Any]:
    """Return OpenAI's model object, with further fields."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "penstock",
        "parent": info.parent or None,
        "root": info.parent or info.name,
        "context_length": info.context_length,
        "max_model_len": info.context_length,
        "capabilities": info.capabilities,
        "engine": info.engine,
        "resume": info.resume or None,
        "workers": info.workers,
        "waiting_jobs": info.waiting,
        "paused": info.paused,
    }


def _anthropic(listed: dict[str, Any]) -> dict[str, Any]:
    """Return Anthropic's model object."""
    created = datetime.fromtimestamp(listed["created"], UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": listed["id"],
        "type": "model",
        "display_name": listed["id"],
        "created_at": created,
        "lifecycle": "active",
        "max_input_tokens": listed["context_length"] or None,
        "max_tokens": listed["context_length"] or None,
    }


def _route(name: str, behind: list[ModelInfo], routing: Routing) -> dict[str, Any]:
    """Describe a name by its models: the first of them, with what all together can do and have waiting."""
    route = routing.routes[name]
    together = {
        "id": name,
        "context_length": max(info.context_length for info in behind),
        "max_model_len": max(info.context_length for info in behind),
        "capabilities": tuple(dict.fromkeys(each for info in behind for each in info.capabilities)),
        "workers": sum(info.workers for info in behind),
        "waiting_jobs": sum(info.waiting for info in behind),
        "paused": all(info.paused for info in behind),
        "stands_for": [info.name for info in behind],
        "spill_after_s": None if math.isinf(route.spill_after_s) else route.spill_after_s,
    }
    return _model(behind[0]) | together
