"""Redis over TLS, alone and behind a Sentinel: it works as without TLS, and refuses a foreign certificate."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cli.embedded_redis import EmbeddedRedis
from shared.domain.errors import QueueUnavailable
from shared.redis.client import connect
from shared.redis.health import examine
from shared.settings import load_settings
from tests.conftest import binary_of
from tests.e2e.harness import running_stack, text_of
from tests.ports import free_port


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate of 127.0.0.1 and its key."""
    made = folder / f"{name}.crt", folder / f"{name}.key"
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", *kind, *names, "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(command, check=True, capture_output=True)
    return made


class Secured:
    """A Redis that also listens with TLS, and a Sentinel that knows only its TLS port."""

    def __init__(self, folder: Path) -> None:
        binary = binary_of("system")
        self.certificate, key = certificate(folder, "ours")
        self.stranger, _ = certificate(folder, "stranger")
        about = {"cert-file": self.certificate, "key-file": key, "ca-cert-file": self.certificate, "auth-clients": "no"}
        self.server = EmbeddedRedis(folder / "redis", binary=binary, port=free_port())
        self.server.start()
        self.port, self.sentinel_port = free_port(), free_port()
        with redis.Redis.from_url(self.server.url) as client:
            client.config_set(*[part for name, value in about.items() for part in (f"tls-{name}", str(value))])
            client.config_set("tls-port", self.port)
        config = folder / "sentinel.conf"
        told = [*[f"tls-{name} {value}" for name, value in about.items()], "tls-replication yes", "port 0"]
        told += [f"tls-port {self.sentinel_port}", "bind 127.0.0.1", f"dir {folder}"]
        config.write_text("\n".join([*told, f"sentinel monitor mymaster 127.0.0.1 {self.port} 1\n"]))
        with (folder / "sentinel.log").open("ab") as log:
            self._sentinel = subprocess.Popen([str(binary), str(config), "--sentinel"], stdout=log, stderr=log)

    def url(self, kind: str, authority: Path) -> str:
        port, place = (self.port, "0") if kind == "rediss" else (self.sentinel_port, "mymaster/0")
        return f"{kind}://127.0.0.1:{port}/{place}?ssl_ca_certs={authority}"

    def stop(self) -> None:
        self._sentinel.kill()
        self._sentinel.wait()
        self.server.stop()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    made = Secured(tmp_path)
    yield made
    made.stop()


async def answers(url: str) -> bool:
    client = connect(url)
    try:
        return bool(await examine(client, load_settings()))
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", ["rediss", "rediss+sentinel"])
def test_a_stream_goes_through_tls(tmp_path: Path, secured: Secured, kind: str) -> None:
    url = secured.url(kind, secured.certificate)
    with running_stack(tmp_path, secured.server, "scripted", redis_url=url) as stack:
        asked: Any = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
        text = text_of(stack.client().chat.completions.create(**asked, stream=True))
        with redis.Redis.from_url(secured.server.url) as client:
            plain = [each for each in client.client_list() if each["laddr"].endswith(f":{secured.server.port}")]
            others = [each for each in client.client_list() if each["laddr"].endswith(f":{secured.port}")]

    assert len(text.split()) == 20
    assert len(others) > len(plain)


@pytest.mark.parametrize("kind", ["rediss", "rediss+sentinel"])
async def test_a_certificate_that_is_not_trusted_is_refused(secured: Secured, kind: str) -> None:
    assert await answers(secured.url(kind, secured.certificate))
    with pytest.raises(QueueUnavailable, match="no Redis answers"):
        await answers(secured.url(kind, secured.stranger))
