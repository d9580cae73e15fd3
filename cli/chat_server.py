"""Finds the server that `penstock chat` talks to, or says in a sentence what is wrong with its URL or with the key."""

from collections.abc import Iterator

import httpx
import openai
from openai.types import Model

from cli.redis_location import API_URL
from shared.domain.errors import Forbidden, InvalidRequest, NotFound

NO_KEY = "none"  # the client insists on one
VERSION = "/v1"
GIVE_KEY = (
    "give one with --api-key KEY or in the variable OPENAI_API_KEY (a Penstock makes them by `penstock keys create`)"
)


class NoListing(Exception):
    """What answers lists no models as OpenAI's API does."""


def find_server(url: str, *, api_key: str | None) -> tuple[openai.OpenAI, list[Model]]:
    """A client of the server, and the models that it lists. A URL that lacks its /v1 is tried with it as well. Raises
    InvalidRequest for what is no URL, NotFound when no API answers there, Forbidden when it wants another key."""
    _require_url(url)
    said = ""
    for base in _bases(url):
        client = openai.OpenAI(base_url=base, api_key=api_key or NO_KEY, max_retries=0)
        try:
            return client, _listed(client)
        except openai.APIConnectionError as error:
            raise NotFound(f"No server answers at {base} (start one with `penstock up`, or give --url).") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise Forbidden(f"The server at {base} {_about_key(error, given=bool(api_key))}") from error
        except (openai.OpenAIError, NoListing) as error:
            said = words(error)
    raise NotFound(f"The server does not list its models at {' or '.join(_bases(url))}: {said}")


def words(error: Exception) -> str:
    """The server's own words where it has said something, and what to do where it wants a key."""
    body = getattr(error, "body", None)
    said = str(body["message"]) if isinstance(body, dict) and body.get("message") else str(error)
    return f"{said} To use another API key, {GIVE_KEY}." if isinstance(error, openai.AuthenticationError) else said


def _about_key(error: openai.APIStatusError, *, given: bool) -> str:
    if given:
        return f"refuses this API key: {words(error)}"
    return f"wants an API key: {GIVE_KEY}."


def _require_url(url: str) -> None:
    if "://" not in url:
        raise InvalidRequest(f"--url: {url} has no scheme: write http://{url} or https://{url}")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"--url: {url} is no URL ({error}); one looks like {API_URL}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"--url: {url} does not name a server; one that does looks like {API_URL}")


def _bases(url: str) -> Iterator[str]:
    base = url.rstrip("/")
    yield base
    if not base.endswith(VERSION):
        yield base + VERSION


def _listed(client: openai.OpenAI) -> list[Model]:
    """Raises OpenAIError or NoListing. The client would take a page of HTML for a list, so its answer is read here."""
    answer = client.models.with_raw_response.list().http_response
    try:
        data = answer.json()["data"]
        return [Model.construct(**each) for each in data if isinstance(each["id"], str)]
    except (ValueError, KeyError, TypeError) as error:
        raise NoListing("what answers there is no API like OpenAI's.") from error
