"""Listening sockets, bound before a server starts, so that a port in use is reported in one clear sentence."""

import socket

from shared.domain.errors import SettingsError


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
