"""Loads a model by starting a server of it, which then is its upstream."""

from contextlib import ExitStack
from dataclasses import replace

from shared.domain.errors import SettingsError
from shared.process.sockets import free_port
from shared.settings import Settings
from workers.engines.command.options import CommandOptions
from workers.engines.command.server import CommandServer
from workers.engines.command.upstreams import CommandUpstreams
from workers.engines.upstream.loader import load_upstreams
from workers.loading.loaded import Loaded
from workers.loading.model_spec import ModelSpec
from workers.loading.options import validated
from workers.process.single_thread import SingleThread

KIND = "command"


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Start the server, and wait until it is ready. Raises SettingsError for options that are wrong, and with the
    server's last lines if it ends before it is ready."""
    if "urls" in spec.options:
        raise SettingsError("ENGINE_OPTION urls: the engine command has none; it asks the server that it starts")
    port = free_port()
    given = {**spec.options, "urls": f"http://127.0.0.1:{port}/v1"}
    options = validated(KIND, given, CommandOptions)
    server = CommandServer(options, port=port, model=spec.name)
    upstreams = CommandUpstreams(server, options, model=spec.source, redis_url=settings.redis_url)
    with ExitStack() as opened:
        opened.callback(server.stop)
        loaded = load_upstreams(spec, settings, thread, upstreams, options)
        opened.callback(loaded.close)
        return replace(loaded, close=opened.pop_all().close)
