"""Finds the server for `penstock chat`, or says in a sentence why the URL or the key does not work."""

from collections.abc import Iterator

import httpx
import openai
from openai.types import Model

from cli.redis_location import API_URL
from shared.domain.errors import Forbidden, InvalidRequest, NotFound

NO_KEY = "none"  # the client refuses to start without a key
VERSION = "/v1"
GIVE_KEY = (
    "give one with --api-key KEY or in the variable OPENAI_API_KEY (`penstock keys create` makes one for a Penstock)"
)


class NoListing(Exception):
    """The server's answer is not a list of models as in OpenAI's API."""


def find_server(url: str, *, api_key: str | None) -> tuple[openai.OpenAI, list[Model]]:
    """Return a client of the server and the models that the server lists. A URL without /v1 is tried with it as well.

    Raises InvalidRequest for an invalid URL, NotFound if no API answers there, Forbidden if the key is refused."""
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
            said = explain(error)
    raise NotFound(f"The server does not list its models at {' or '.join(_bases(url))}: {said}")


def explain(error: Exception) -> str:
    """Return the server's own message if it sent one, and how to give a key if it refused the key."""
    body = getattr(error, "body", None)
    said = str(body["message"]) if isinstance(body, dict) and body.get("message") else str(error)
    return f"{said} To use another API key, {GIVE_KEY}." if isinstance(error, openai.AuthenticationError) else said


def _about_key(error: openai.APIStatusError, *, given: bool) -> str:
    if given:
        return f"refuses this API key: {explain(error)}"
    return f"requires an API key: {GIVE_KEY}."


def _require_url(url: str) -> None:
    if "://" not in url:
        raise InvalidRequest(f"--url: {url} has no scheme: write http://{url} or https://{url}")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"--url: {url} is not a URL ({error}); a valid one looks like {API_URL}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"--url: {url} does not name a server; a valid one looks like {API_URL}")


def _bases(url: str) -> Iterator[str]:
    base = url.rstrip("/")
    yield base
    if not base.endswith(VERSION):
        yield base + VERSION


def _listed(client: openai.OpenAI) -> list[Model]:
    """List the server's models. Raises OpenAIError or NoListing.

    The client would accept a page of HTML as a list, so the raw response is parsed here."""
    answer = client.models.with_raw_response.list().http_response
    try:
        data = answer.json()["data"]
        return [Model.construct(**each) for each in data if isinstance(each["id"], str)]
    except (ValueError, KeyError, TypeError) as error:
        raise NoListing("the response is not a list of models as in OpenAI's API.") from error
