"""`/v1/webhooks`: endpoints that are notified when a background response or a batch has ended. Each key sees only its
own."""

import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field, field_validator

from api.formats.listing import listing
from api.http.auth import caller_of
from api.http.json_route import JsonRoute
from api.schemas.base import Items, Strict
from api.serving.services import ServicesDep
from api.stores.webhooks import EVENTS, Endpoint, payload_of
from shared.domain.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute)
ENDPOINTS_MAX = 20


class WebhookRequest(Strict):
    """An endpoint to register. Without `events`, it receives all of them."""

    url: str = Field(min_length=1, max_length=2000)
    """The URL to which events are posted."""
    events: Annotated[list[str], Items(len(EVENTS))] = Field(default_factory=list)
    """The events to deliver; without any, all events are delivered."""

    @field_validator("events")
    @classmethod
    def _known(cls, events: list[str]) -> list[str]:
        if unknown := [event for event in events if event not in EVENTS]:
            raise ValueError(f"{unknown[0]!r:.80} is not one of {', '.join(EVENTS)}")
        return events


async def _mine(endpoint_id: str, request: Request, services: ServicesDep) -> Endpoint:
    return await services.webhooks.get(endpoint_id, tenant=caller_of(request).tenant)


Mine = Annotated[Endpoint, Depends(_mine)]


@router.post("/v1/webhooks")
async def create_webhook(body: WebhookRequest, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Register an endpoint. Its deliveries are signed with the secret in this answer."""
    tenant = caller_of(request).tenant
    if len(await services.webhooks.all(tenant)) >= ENDPOINTS_MAX:
        raise InvalidRequest(f"At most {ENDPOINTS_MAX} webhook endpoints are allowed.", param="url")
    endpoint = await services.webhooks.add(tenant, body.url, body.events)
    return endpoint.body() | {"secret": endpoint.secret}


@router.get("/v1/webhooks")
async def list_webhooks(request: Request, services: ServicesDep) -> dict[str, Any]:
    found = await services.webhooks.all(caller_of(request).tenant)
    return listing([endpoint.body() for endpoint in found], more=False)


@router.get("/v1/webhooks/{endpoint_id}")
async def retrieve_webhook(endpoint: Mine) -> dict[str, Any]:
    return endpoint.body()


@router.post("/v1/webhooks/{endpoint_id}/rotate")
async def rotate_webhook_secret(endpoint: Mine, services: ServicesDep) -> dict[str, Any]:
    """Replace the secret. For a day, the old one signs deliveries as well."""
    rotated = await services.webhooks.rotate(endpoint)
    return rotated.body() | {"secret": rotated.secret}


@router.post("/v1/webhooks/{endpoint_id}/test")
async def test_webhook(endpoint: Mine, services: ServicesDep) -> dict[str, Any]:
    """Send a test event to the endpoint once, and report the result."""
    event_id = f"evt_test_{secrets.token_hex(8)}"
    payload = payload_of(event_id, endpoint.events[0], "resp_test", int(time.time()))
    result = await services.webhooks.send(endpoint, event_id, payload)
    return {"object": "webhook_test", "delivered": result.good, "status_code": result.status, "error": result.error}


@router.delete("/v1/webhooks/{endpoint_id}")
async def delete_webhook(endpoint: Mine, services: ServicesDep) -> dict[str, Any]:
    await services.webhooks.remove(endpoint)
    return {"id": endpoint.id, "object": "webhook_endpoint.deleted", "deleted": True}
