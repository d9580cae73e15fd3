"""The start of an API process from its settings."""

import logging
from functools import partial

from api.app import make_app
from api.http.request_options import weights
from api.http.server import ApiServer, allow_many_connections
from api.serving.moderation import require_moderation
from shared.domain.errors import QueueUnavailable, SettingsError
from shared.observability.tracing import start_tracing
from shared.process.garbage import spare_what_stays
from shared.process.sockets import listen
from shared.redis.client import connect
from shared.redis.health import patiently, require_healthy
from shared.settings import Settings

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when it cannot start."""
    weights(settings)  # a bad setting fails now, not at the first request
    require_moderation(settings)
    start_tracing(settings, service="penstock-api")
    listen(settings.host, settings.port, setting="PENSTOCK_PORT").close()  # a port in use fails now, too
    for url in settings.redis_urls:
        await _check(settings, url)
    allow_many_connections()
    bound = listen(settings.host, settings.port, setting="PENSTOCK_PORT")  # clients may connect from now on
    server = ApiServer(make_app(settings), settings)
    spare_what_stays()
    await server.serve(sockets=[bound])


async def _check(settings: Settings, url: str) -> None:
    """Examine a Redis. Raises SettingsError if it loses jobs, and QueueUnavailable when the home stays away.
    Any other Redis that is away makes only its own models unavailable until it returns."""
    home = url == settings.redis_url
    try:
        client = connect(url)
        examined = partial(require_healthy, client, settings.model_copy(update={"redis_url": url}))
        for warning in await (patiently(examined, settings) if home else examined()):
            log.warning(warning)
        await client.aclose()
    except (SettingsError, QueueUnavailable) as error:
        if home:
            raise
        about = f"PENSTOCK_SHARD_URLS: {str(error).removeprefix('PENSTOCK_REDIS_URL: ')}"
        if isinstance(error, SettingsError):
            raise SettingsError(about) from error
        log.warning(about)
