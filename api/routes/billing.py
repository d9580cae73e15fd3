"""`GET /dashboard/billing/..`: what NextChat and other clients show on their settings page. There is no price here, so
where they say a dollar it is a million tokens."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from api.http.auth import caller_of
from api.serving.services import Services, services_of

router = APIRouter(include_in_schema=False)
MILLION = 1_000_000
NO_LIMIT = 1_000_000  # shown where nothing limits the key


@router.get("/dashboard/billing/usage")
@router.get("/v1/dashboard/billing/usage")
async def usage(request: Request, services: Annotated[Services, Depends(house_of)]) -> dict[str, Any]:
    """Tokens of this month, in hundredths of a million."""
    used = await services.keys.used(caller_of(request).tenant)
    return {"object": "list", "total_usage": used * 100 / MILLION}


@router.get("/dashboard/billing/subscription")
@router.get("/v1/dashboard/billing/subscription")
async def subscription(request: Request) -> dict[str, Any]:
    """The month's budget, in millions of tokens."""
    key = caller_of(request).key
    limit = key.tokens_per_month / MILLION if key and key.tokens_per_month else NO_LIMIT
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "hard_limit_usd": limit,
        "soft_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "access_until": int(time.time()) + 366 * 86400,
    }
