"""`/admin/models`: the models of all hosts, and orders to load, unload, switch and keep them."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from api.routes.admin import OperatorRoute
from api.schemas.hosting import KeepOrder, ModelOrder, SwitchOrder, UnloadOrder
from api.serving.services import Services, ServicesDep
from shared.catalog.model_orders import PlacedOrder
from shared.catalog.model_states import model_objects

router = APIRouter(prefix="/admin/models", route_class=OperatorRoute)

ANY_HOST, WHEN_IDLE = ModelOrder(), UnloadOrder()


@router.get("")
async def list_model_states(services: ServicesDep) -> dict[str, Any]:
    """List all models with their states, and what each host tells of them."""
    found = await model_objects(services.model_registry, services.hosted_models.hosting)
    return {"object": "list", "data": found}


@router.post("/switch")
async def switch_models(body: SwitchOrder, services: ServicesDep) -> dict[str, Any]:
    """Unload one model and load another one in its place."""
    placed = await services.model_orders.switch(body.from_, body.to, when=body.unload_when, host=body.host)
    return await _orders(services, placed, body)


@router.post("/{name:path}/load")
async def load_model(name: str, services: ServicesDep, body: ModelOrder = ANY_HOST) -> dict[str, Any]:
    """Load a model, for which others may have to be unloaded."""
    return await _orders(services, await services.model_orders.load(name, host=body.host), body)


@router.post("/{name:path}/unload")
async def unload_model(name: str, services: ServicesDep, body: UnloadOrder = WHEN_IDLE) -> dict[str, Any]:
    """Unload a model wherever it is loaded. Jobs that come later load it again."""
    placed = await services.model_orders.unload(name, when=body.unload_when, host=body.host)
    return await _orders(services, placed, body)


@router.post("/{name:path}/keep")
async def keep_model(name: str, body: KeepOrder, services: ServicesDep) -> dict[str, Any]:
    """Keep a model loaded for a time, also while it is idle or others wait for its place. It is loaded first, if it is
    not."""
    return await _orders(services, await services.model_orders.keep(name, body.for_s, host=body.host), body)


async def _orders(services: Services, placed: Sequence[PlacedOrder], body: ModelOrder) -> dict[str, Any]:
    orders = await services.model_orders.outcomes(placed, wait_s=body.wait_s)
    return {"object": "list", "data": [_order(each) for each in orders]}


def _order(placed: PlacedOrder) -> dict[str, Any]:
    order = placed.order
    return {
        "id": order.id,
        "object": "order",
        "host": placed.host,
        "verb": order.verb,
        "model": order.model,
        "status": "open" if placed.outcome is None else "failed" if placed.failure else "done",
        "error": placed.failure or None,
    }
