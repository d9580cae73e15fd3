"""`POST /v1/moderations`: asks the moderation server that the operator has set."""

from typing import Any

from fastapi import APIRouter, Request

from api.http.auth import caller_of
from api.http.json_route import JsonRoute
from api.schemas.moderation import ModerationRequest
from api.serving.services import ServicesDep

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/moderations")
async def create_moderation(body: ModerationRequest, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Return the moderation server's verdict, which counts as one request of the key. 404 where the operator has set no
    such server."""
    await services.authenticator.charge(caller_of(request))
    return await services.moderation.ask(body.model_dump(exclude_none=True))
