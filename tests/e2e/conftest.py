"""One running stack for each engine; tests that kill things build their own."""

from collections.abc import Iterator

import pytest

from cli.embedded_redis import EmbeddedRedis, find_binary, free_port
from tests.e2e.harness import Stack, running_house

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
    with running_stack(
        tmp_path_factory.mktemp("scripted"), "scripted", scripted_step_ms=5, scripted_tokens=1_000_000
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("builtin"), "builtin") as stack:
        yield stack
