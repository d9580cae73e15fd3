"""`GET /dashboard/billing/...`: figures that NextChat and other clients show on their settings page. Only upstreams
have prices, so a dollar there stands for a million tokens."""

import time
from typing import Any

from fastapi import APIRouter, Request

from api.http.auth import caller_of
from api.serving.services import ServicesDep

router = APIRouter(include_in_schema=False)
MILLION = 1_000_000
NO_LIMIT = 1_000_000  # shown where nothing limits the key


@router.get("/dashboard/billing/usage")
@router.get("/v1/dashboard/billing/usage")
async def usage(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Return this month's tokens, in hundredths of a million."""
    used = await services.keys.used(caller_of(request).tenant)
    return {"object": "list", "total_usage": used * 100 / MILLION}


@router.get("/dashboard/billing/subscription")
@router.get("/v1/dashboard/billing/subscription")
async def subscription(request: Request) -> dict[str, Any]:
    """Return the month's budget, in millions of tokens."""
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
