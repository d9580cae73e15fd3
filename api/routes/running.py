"""The two endpoints by which tools for llama-swap see which models are loaded, and unload them."""

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from api.http.auth import caller_of, keys_required, may_use
from api.routes.admin import require_operator
from api.serving.services import Services, ServicesDep
from shared.catalog.hosting import best_of
from shared.domain.hosting import HostedModel, HostedState, When

STATES = {HostedState.LOADING: "starting", HostedState.READY: "ready", HostedState.DRAINING: "stopping"}

router = APIRouter()


@router.get("/running")
async def list_running_models(request: Request, services: ServicesDep) -> dict[str, Any]:
    """List the models that are loaded, or being loaded or unloaded, as llama-swap does. `ttl` is after how many seconds
    an idle model will be unloaded; 0 is never."""
    caller, records = caller_of(request), await services.hosted_models.hosting.all()
    served = {info.name for info in await services.model_registry.models() if info.workers}
    names = sorted(name for name in {*records, *served} if may_use(caller, name))
    running = [_running(name, best_of(records[name]) if name in records else None, name in served) for name in names]
    return {"running": [each for each in running if each]}


def _running(name: str, record: HostedModel | None, served: bool) -> dict[str, Any] | None:
    state = STATES.get(record.state) if record else None
    if not state and not served:
        return None
    left_s = record.unloads_at_s - time.time() if record and record.unloads_at_s else 0
    about = {"cmd": "", "proxy": "", "name": "", "description": ""}
    return {"model": name, "state": state or "ready", "ttl": max(round(left_s), 0), **about}


@router.post("/api/models/unload")
async def unload_all_models(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Unload every model now, as llama-swap does. Running jobs go back into the queue, and load their models again."""
    _require_right(request, services)
    await services.model_orders.unload_all(when=When.NOW)
    return {"msg": "ok"}


@router.post("/api/models/unload/{name:path}", response_class=PlainTextResponse)
async def unload_named_model(name: str, request: Request, services: ServicesDep) -> PlainTextResponse:
    """Unload a model now, as llama-swap does."""
    _require_right(request, services)
    await services.model_orders.unload(name, when=When.NOW)
    return PlainTextResponse("OK")


def _require_right(request: Request, services: Services) -> None:
    """Let anybody unload models where nobody needs a key, and else the operator."""
    if services.settings.admin_key or keys_required(services.settings):
        require_operator(request, services)
