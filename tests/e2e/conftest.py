"""One running stack per engine and process of pytest; tests that kill processes start their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest

from cli.embedded_redis import EmbeddedRedis, find_binary
from tests.e2e.harness import Stack, standalone_stack
from tests.models import calling_model
from tests.ports import free_port
from workers.parsers.tool_formats import HERMES

BUILTIN = "penstock-tiny"
CALLER = "caller"


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give httpx a single certificate authority: it reads all of them for each client, which takes longer than most
    requests, and no test speaks TLS to a stranger."""
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    file.write_text(first + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """Start a server that the test may kill."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("own"), binary=find_binary(), port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(
        tmp_path_factory.mktemp("scripted"), "scripted", scripted_step_ms=5, scripted_tokens=1_000_000
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standalone_stack(tmp_path_factory.mktemp("builtin"), "builtin") as stack:
        yield stack


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the scripted engine and a model of random weights that calls tools."""
    folder = tmp_path_factory.mktemp("responses")
    calling_model(folder / CALLER, HERMES.sign, HERMES.marks)
    settings: dict[str, Any] = {"scripted_step_ms": 10, "scripted_tokens": 100_000}
    with standalone_stack(folder, "scripted", str(folder / CALLER), **settings) as stack:
        yield stack


@pytest.fixture
def responses(caller: Stack) -> Any:
    return caller.client().responses
