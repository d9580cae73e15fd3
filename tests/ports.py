"""Ports for the servers that tests start. Each parallel process of pytest has a share of the ports, so that no two take
the same port before a server listens on it."""

import os
from collections.abc import Sequence

from shared.process import sockets


def share(worker: str, workers: int) -> Sequence[int]:
    """Return the share of a pytest process. `worker` is its name in pytest-xdist: gw0, gw1 and so on."""
    return sockets.RESERVABLE_PORTS[int(worker.removeprefix("gw")) :: workers]


def free_port() -> int:
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    return sockets.free_port(share(worker, int(workers)))
