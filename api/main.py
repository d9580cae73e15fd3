"""An API process from its settings."""

import logging
from functools import partial

from api.app import make_app
from api.http.request_options import weights
from api.http.server import ApiServer, allow_many_connections
from shared.domain.errors import QueueUnavailable, SettingsError
from shared.observability.tracing import start_tracing
from shared.process.sockets import listen
from shared.redis.client import connect
from shared.redis.health import patiently, require_healthy
from shared.settings import Settings

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when it cannot start."""
    weights(settings)  # said now, not by the first request
    start_tracing(settings, service="penstock-api")
    listen(settings.host, settings.port, setting="PENSTOCK_PORT").close()  # a taken port is said now, too
    for url in settings.redis_urls:
        await _check(settings, url)
    allow_many_connections()
    bound = listen(settings.host, settings.port, setting="PENSTOCK_PORT")  # nobody connects while nobody answers
    await ApiServer(make_app(settings), settings).serve(sockets=[bound])


async def _check(settings: Settings, url: str) -> None:
    """Raises SettingsError for a Redis that loses jobs, and QueueUnavailable when the home stays away. Another one that
    is away has only its own models with it, until it comes."""
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
