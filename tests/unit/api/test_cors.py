"""Pages of other origins may do what the operator allows; without keys, hardly anything."""

from typing import Any

import httpx
import pytest

from api.app import make_app
from shared.settings import load_settings

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang, idempotency-key",
}


async def ask(origins: str | None, verb: str, path: str, *, settings: Any = None, **headers: str) -> httpx.Response:
    app = make_app(load_settings(**{"keys": "auto", "cors_origins": origins, **(settings or {})}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
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


LOCAL = ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"]
FOREIGN = ["https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "null", "file://"]
KEYED = {"keys": "required"}


@pytest.mark.parametrize("origin", LOCAL)
async def test_without_keys_pages_of_this_machine_may_read_answers(origin: str) -> None:
    told = await ask(None, "GET", "/health/live", origin=origin)

    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses/resp_1", "/admin/keys", "/health/live"])
async def test_without_keys_a_foreign_page_is_not_served(origin: str, path: str) -> None:
    """This includes requests without a preflight, such as a form or a text."""
    for verb in ("GET", "POST", "DELETE", "OPTIONS"):
        told = await ask(None, verb, path, origin=origin, **{"content-type": "text/plain"})

        assert told.status_code == 403
        assert "PENSTOCK_CORS_ORIGINS" in told.json()["error"]["message"]
        assert "access-control-allow-origin" not in told.headers


async def test_named_pages_and_those_of_this_machine_may_ask_without_keys() -> None:
    for origin in ("https://chat.example", "http://localhost:3000"):
        told = await ask("https://chat.example", "GET", "/health/live", origin=origin)
        assert told.headers["access-control-allow-origin"] == origin

    assert (await ask("https://chat.example", "GET", "/health/live", origin="https://evil.example")).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "a b", "[::1"])
async def test_without_keys_a_rebound_name_is_not_served(host: str) -> None:
    """To the browser, the page of a rebound name has the API's own origin."""
    told = await ask(None, "GET", "/health/live", host=host, origin=f"http://{host}")

    assert told.status_code == 403
    assert "PENSTOCK_ALLOWED_HOSTS" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000", "localhost."]
)
async def test_this_machine_has_its_own_names(host: str) -> None:
    assert (await ask(None, "GET", "/health/live", host=host)).status_code == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({"allowed_hosts": "api, box.local"}, "box.local:8000", 200),
        ({"allowed_hosts": "*"}, "evil.example", 200),
        ({"host": "0.0.0.0", "keys": "off"}, "box.local", 200),
        ({"host": "0.0.0.0", "keys": "off", "allowed_hosts": "api"}, "api:8000", 200),
        ({"host": "0.0.0.0", "keys": "off", "allowed_hosts": "api"}, "box.local", 403),
        (KEYED, "box.local", 200),
        (KEYED | {"allowed_hosts": "api"}, "box.local", 200),
    ],
)
async def test_the_operator_says_which_names_are_served(settings: dict[str, str], host: str, status: int) -> None:
    assert (await ask(None, "GET", "/health/live", settings=settings, host=host)).status_code == status


async def test_with_keys_every_page_may_ask_as_ever() -> None:
    told = await ask(None, "GET", "/health/live", settings=KEYED, origin="https://chat.example")

    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] == "*"


async def test_a_page_of_the_api_itself_may_ask_whatever_its_name_is() -> None:
    for origin, status in (("http://box.local:8000", 200), ("http://evil.example", 403)):
        open_to_all = {"host": "0.0.0.0", "keys": "off"}
        told = await ask(None, "GET", "/health/live", settings=open_to_all, host="box.local:8000", origin=origin)
        assert told.status_code == status
