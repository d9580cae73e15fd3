"""An API process from its settings."""

import logging

from api.app import make_app
from api.server import ApiServer, allow_many_connections
from api.terms import weights
from shared.checkup import require_healthy
from shared.errors import QueueUnavailable, SettingsError
from shared.redis_client import connect
from shared.settings import Settings
from shared.sockets import listen
from shared.tracing import start_tracing

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when it cannot start."""
    weights(settings)  # said now, not by the first request
    start_tracing(settings, service="penstock-api")
    bound = listen(settings.host, settings.port, setting="PENSTOCK_PORT")
    for url in settings.redis_urls:
        await _check(settings, url)
    allow_many_connections()
    await ApiServer(make_app(settings), settings).serve(sockets=[bound])


async def _check(settings: Settings, url: str) -> None:
    """Raises SettingsError for a Redis that loses jobs, and QueueUnavailable when the home is away. Another one that is
    away has only its own models with it, until it comes."""
    try:
        client = connect(url)
        for warning in await require_healthy(client, settings.model_copy(update={"redis_url": url})):
            log.warning(warning)
        await client.aclose()
    except (SettingsError, QueueUnavailable) as error:
        if url == settings.redis_url:
            raise
        about = f"PENSTOCK_SHARD_URLS: {str(error).removeprefix('PENSTOCK_REDIS_URL: ')}"
        if isinstance(error, SettingsError):
            raise SettingsError(about) from error
        log.warning(about)
