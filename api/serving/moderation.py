"""Moderation by a server of the operator's choice: its answers to clients, and its verdict on inputs before they become
jobs. Its address is a setting, so no client can send a request elsewhere."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from shared.domain.errors import (
    InputFlagged,
    InvalidRequest,
    ModerationUnavailable,
    NotFound,
    NoVerdict,
    SettingsError,
)
from shared.settings import Settings

log = logging.getLogger(__name__)
Json = dict[str, Any]
ANSWER_BYTES_MAX = 4_000_000
AT_ONCE = 64  # requests to the moderation server; others wait within the time limit
SILENT = "The moderation server gives no answer at the moment; nothing was accepted."


class Moderation:
    def __init__(self, settings: Settings) -> None:
        self._url = settings.moderation_url
        self._mode = settings.moderated_inputs
        self._timeout_s = settings.moderation_timeout_s
        key = settings.moderation_key
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=AT_ONCE),
            timeout=self._timeout_s,  # of each step; `ask` bounds them all together
            verify=httpx.create_ssl_context() if self._url.startswith("https:") else False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, body: Json) -> Json:
        """Return the server's answer. Raises NotFound without a server, InvalidRequest for what it refuses, and
        ModerationUnavailable."""
        if not self._url:
            raise NotFound("This API moderates nothing: PENSTOCK_MODERATION_URL is not set.")
        try:
            async with asyncio.timeout(self._timeout_s):
                status, data = await self._post(orjson.dumps(body))
            answer = orjson.loads(data)
        except (TimeoutError, httpx.HTTPError, ValueError) as error:
            log.warning("the moderation server gives no answer", extra={"error": str(error) or type(error).__name__})
            raise ModerationUnavailable(SILENT) from error
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("results"), list):
            return answer
        if status in (400, 413, 422):
            raise InvalidRequest(f"The moderation server refuses this: {_message(answer)}")
        log.warning("the moderation server refuses to answer", extra={"status": status})
        raise ModerationUnavailable(SILENT)

    async def _post(self, data: bytes) -> tuple[int, bytes]:
        """Raises ValueError for an answer that is too long."""
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", self._url, content=data, headers=headers) as response:
            parts, size = [], 0
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > ANSWER_BYTES_MAX:
                    raise ValueError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
            return response.status_code, b"".join(parts)

    async def require_allowed(self, texts: Sequence[str], *, param: str) -> None:
        """Raise InputFlagged if the setting asks for moderation and the server flags one of the texts; if there is no
        verdict, raise ModerationUnavailable unless the setting is `open`."""
        said = [text for text in texts if text.strip()]
        if self._mode == "off" or not said:
            return
        try:
            results = await self._results(said)
        except ModerationUnavailable:
            if self._mode == "open":
                log.warning("an input was accepted without moderation")
                return
            raise
        if flagged := [result for result in results if result.get("flagged")]:
            found = sorted({name for result in flagged for name, is_so in _categories(result) if is_so})
            about = f": {', '.join(found)}" if found else ""
            raise InputFlagged(f"'{param}' is not allowed here{about}.", param=param)

    async def _results(self, texts: Sequence[str]) -> list[Json]:
        """Return what the server says of the texts. Raises ModerationUnavailable, which is NoVerdict if asking again is
        in vain."""
        try:
            results: list[Json] = (await self.ask({"input": texts}))["results"]
        except InvalidRequest as error:
            raise NoVerdict(SILENT) from error
        if not results or not all(isinstance(result, dict) for result in results):
            raise NoVerdict(SILENT)
        return results

    async def require_texts(self, items: Sequence[Any], *, param: str) -> None:
        """As `require_allowed`, for texts among which there may be token ids, which nobody can moderate."""
        if self._mode == "closed" and not all(isinstance(item, str) for item in items):
            raise InvalidRequest(f"'{param}' must be text here: token ids cannot be moderated.", param=param)
        await self.require_allowed([item for item in items if isinstance(item, str)], param=param)


def require_moderation(settings: Settings) -> None:
    """Raise SettingsError for settings that contradict each other."""
    if settings.moderated_inputs != "off" and not settings.moderation_url:
        raise SettingsError("PENSTOCK_MODERATED_INPUTS needs PENSTOCK_MODERATION_URL")
    if settings.moderation_url and not settings.moderation_url.startswith(("http://", "https://")):
        raise SettingsError("PENSTOCK_MODERATION_URL: it must be http://.. or https://..")


def _categories(result: Json) -> Sequence[tuple[str, Any]]:
    categories = result.get("categories")
    return list(categories.items()) if isinstance(categories, dict) else []


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or answer)[:500]
