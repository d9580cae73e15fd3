"""An API process from its settings."""

import logging

from api.app import make_app
from api.server import ApiServer, allow_many_connections
from api.terms import weights
from shared.checkup import confirmation, require_healthy
from shared.redis_client import connect
from shared.settings import Settings
from shared.sockets import listen

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when it cannot start."""
    weights(settings)  # said now, not by the first request
    bound = listen(settings.host, settings.port, setting="PENSTOCK_PORT")
    client = connect(settings.redis_url)
    for warning in await require_healthy(client, settings):
        log.warning(warning)
    confirm = await confirmation(client, settings)
    await client.aclose()
    allow_many_connections()
    await ApiServer(make_app(settings, confirm), settings).serve(sockets=[bound])
