"""Listening sockets, bound before a server starts, so that a port in use is reported in one clear sentence."""

import random
import socket
from collections.abc import Sequence
from contextlib import suppress

from shared.domain.errors import SettingsError

RESERVABLE_PORTS = range(10_000, 32_000)


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """Return a bound socket; port 0 picks a free port. Raises SettingsError, which names `setting`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = "is in use" if getattr(error, "errno", None) == 98 else f"cannot be opened ({error})"
        raise SettingsError(f"{setting}: port {port} on {host} {reason}; choose another") from error


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port(among: Sequence[int] = RESERVABLE_PORTS) -> int:
    """Find a free port outside the ephemeral range: an outgoing connection could take an ephemeral port before the
    server binds it."""
    for port in random.sample(among, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise SettingsError("no free port on 127.0.0.1")
