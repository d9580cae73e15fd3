"""Ports for the servers that tests start. Processes of pytest that run side by side take them from shares of their own:
a port that one has found free, and whose server still starts, is found free by no other."""

import os
from collections.abc import Sequence

from cli import embedded_redis


def share(worker: str, workers: int) -> Sequence[int]:
    """`worker`: the name that pytest-xdist gives to a process of pytest, gw0, gw1 and so on."""
    return embedded_redis.RESERVABLE_PORTS[int(worker.removeprefix("gw")) :: workers]


def free_port() -> int:
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    return embedded_redis.free_port(share(worker, int(workers)))
