"""What a page of another origin may do, as the operator says."""

import httpx
import pytest

from api.app import make_app
from shared.settings import load_settings

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang, idempotency-key",
}


async def ask(origins: str, verb: str, path: str, **headers: str) -> httpx.Response:
    app = make_app(load_settings(cors_origins=origins))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://penstock") as client:
        return await client.request(verb, path, headers=headers)


@pytest.mark.parametrize("origins", ["https://chat.example", "https://other.example, https://chat.example", "*"])
async def test_a_page_that_may_ask_is_told_so(origins: str) -> None:
    told = await ask(origins, "OPTIONS", "/v1/chat/completions", origin="https://chat.example", **PREFLIGHT)

    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] in ("https://chat.example", "*")
    allowed = told.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in PREFLIGHT["access-control-request-headers"].split(", "))


async def test_it_sees_errors_and_the_headers_that_it_needs() -> None:
    told = await ask("https://chat.example", "GET", "/nothing", origin="https://chat.example")

    assert told.status_code == 404
    assert told.headers["access-control-allow-origin"] == "https://chat.example"
    assert {"x-request-id", "retry-after"} <= set(told.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize("origins", ["", "https://chat.example"])
async def test_other_pages_may_not(origins: str) -> None:
    told = await ask(origins, "GET", "/health/live", origin="https://evil.example")

    assert "access-control-allow-origin" not in told.headers
