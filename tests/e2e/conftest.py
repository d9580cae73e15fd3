"""One running house for each engine; tests that kill things build their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis, find_binary, free_port
from tests.e2e.harness import Stack, running_stack

BUILTIN = "penstock-tiny"


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server that the test may kill."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("own"), binary=find_binary(), port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from _house(tmp_path_factory.mktemp("scripted"), "scripted", scripted_step_ms=5, scripted_tokens=1_000_000)


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from _house(tmp_path_factory.mktemp("builtin"), "builtin")


def _house(folder: Path, model: str, **settings: Any) -> Iterator[Stack]:
    """Its own Redis too: houses that share one would serve each other's jobs."""
    server = EmbeddedRedis(folder / "redis", binary=find_binary(), port=free_port())
    server.start()
    try:
        with running_stack(folder, server, model, **settings) as stack:
            yield stack
    finally:
        server.stop()
