"""The API's pages and metrics can be turned off, and its log lines stay short."""

import logging
from importlib.metadata import version

import httpx
import pytest

from api.app import make_app
from api.http.middleware import versioned
from shared.settings import load_settings


async def ask(verb: str, path: str, **settings: object) -> httpx.Response:
    app = make_app(load_settings(**({"keys": "auto"} | settings)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(verb, path)


async def test_a_long_path_is_no_long_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "api.http.middleware"):
        await ask("GET", "/" + "x" * 60_000)

    (record,) = [each for each in caplog.records if each.name == "api.http.middleware"]
    assert 100 < len(str(record.__dict__)) < 3000


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/"])
async def test_the_pages_can_be_turned_off(path: str) -> None:
    assert (await ask("GET", path)).status_code in (200, 307)
    assert (await ask("GET", path, docs=False)).status_code == 404


async def test_metrics_can_be_turned_off() -> None:
    assert (await ask("GET", "/metrics", metrics=False)).status_code == 404


async def test_the_first_page_leads_to_the_description() -> None:
    assert (await ask("GET", "/")).headers["location"] == "/docs"


async def test_head_is_answered_where_get_is() -> None:
    for path in ("/health/live", "/version", "/docs", "/"):
        assert (await ask("HEAD", path)).status_code == (await ask("GET", path)).status_code
    assert (await ask("HEAD", "/nothing")).status_code == 404


async def test_the_release_is_told() -> None:
    assert (await ask("GET", "/version")).json() == {"version": version("penstock")}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/tokenize", "/v1/tokenize"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/v1/models", "/v1/models"),
        ("/health", "/health"),
        ("/modelsx", "/modelsx"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_a_path_without_a_version_means_the_first(path: str, meant: str) -> None:
    assert versioned(path) == meant
