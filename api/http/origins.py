"""Decides which web pages may use an API without keys, and under which host names. A browser reaches this machine for
every page that its user visits: a page may send simple requests anywhere, and a name that points here after the page
was loaded (DNS rebinding) lets it read the answers, too. An API with keys is protected by them."""

import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.auth import is_loopback, keys_required
from api.http.problems import Problem
from shared.settings import Settings

AUTO, ANY = "auto", "*"
LOOPBACK_PAGES = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


@dataclass(frozen=True, slots=True)
class Origins:
    """The allowed origins (`pages`), and the host names that the API answers to beside loopback's (`hosts`, None for
    any)."""

    pages: frozenset[str]
    hosts: frozenset[str] | None

    def refusal(self, host: str, origin: str) -> str:
        """Return why a request with these headers is refused; '' if it is served, like any request without them, which
        no browser sent."""
        if host and not self._is_ours(host):
            return (
                f"The API asks for no keys, so it is not served under the name {host!r:.100}: PENSTOCK_ALLOWED_HOSTS "
                "names those under which it is."
            )
        if origin and not self._may_ask(host, origin):
            return (
                f"The API asks for no keys, so pages of {origin!r:.100} may not use it: PENSTOCK_CORS_ORIGINS names "
                "those that may."
            )
        return ""

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return self.hosts is None or is_loopback(name) or name in self.hosts

    def _may_ask(self, host: str, origin: str) -> bool:
        own = origin.partition("://")[2] == host  # the API's own page
        return own or ANY in self.pages or origin in self.pages or bool(re.fullmatch(LOOPBACK_PAGES, origin))


class OriginGuard:
    """Refuses requests from other origins. It is plain ASGI, since streams pass through."""

    def __init__(self, app: ASGIApp, *, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
            if reason := self._origins.refusal(given.get(b"host", ""), given.get(b"origin", "")):
                await Problem(code="permission_denied", message=reason).response(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def origins_of(settings: Settings) -> Origins | None:
    """Return the allowed origins; None if keys are required: then any page with a key may send requests."""
    if keys_required(settings):
        return None
    hosts = frozenset(_listed(settings.allowed_hosts.lower()))
    bounded = bool(hosts) or is_loopback(settings.host)
    pages = frozenset(_listed(settings.cors_origins.lower())) - {AUTO}
    return Origins(pages, None if ANY in hosts or not bounded else hosts | {settings.host.lower()})


def readers(settings: Settings) -> dict[str, object]:
    """Return CORSMiddleware's options for the pages that may read answers; empty for none."""
    named = _listed(settings.cors_origins)
    if named == [AUTO]:
        return {"allow_origins": [ANY]} if keys_required(settings) else {"allow_origin_regex": LOOPBACK_PAGES}
    if not named or keys_required(settings):
        return {"allow_origins": named} if named else {}
    return {"allow_origins": named, "allow_origin_regex": LOOPBACK_PAGES}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _name(host: str) -> str:
    """Return the host without brackets and port; '' for an invalid one."""
    parts = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:/\[\]]+))(?::\d+)?", host)
    return (parts[1] or parts[2]).rstrip(".") if parts else ""
