"""An API process from its settings."""

import logging

import uvicorn

from api.app import make_app
from shared.redis_client import check, connect, durability_warning
from shared.settings import Settings
from shared.sockets import listen

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises SettingsError when it cannot start."""
    bound = listen(settings.host, settings.port, setting="PENSTOCK_PORT")
    client = connect(settings.redis_url)
    await check(client, settings.redis_url)
    if warning := await durability_warning(client):
        log.warning(warning)
    await client.aclose()
    config = uvicorn.Config(
        make_app(settings),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
        server_header=False,
    )
    await uvicorn.Server(config).serve(sockets=[bound])
