"""Redis fails over, refuses, fills up, stalls or drops connections: no job is lost, and no client waits in silence."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cli.embedded_redis import EmbeddedRedis
from tests.conftest import binary_of
from tests.e2e.harness import Stack, eventually, frozen, running_stack
from tests.e2e.test_faults import LONG, ask, expect_whole, read_all
from tests.ports import free_port

NAMES = ["a", "b", "c", "d"]


def expect_all(readers: list[Any], tokens: int, *, pause_s: float) -> list[str]:
    for reader in readers:
        reader.join(timeout=60)
        assert reader.error is None
        assert len(reader.text.split()) == tokens
        assert reader.longest_pause_s() < pause_s
    return [reader.text for reader in readers]


class Sentinels:
    """Runs a primary, a replica and three sentinels of the system's redis-server."""

    def __init__(self, folder: Path) -> None:
        self.binary = binary_of("system")
        self.primary = EmbeddedRedis(folder / "primary", binary=self.binary, port=free_port())
        self.replica = EmbeddedRedis(folder / "replica", binary=self.binary, port=free_port())
        self.primary.start()
        self.replica.start()
        with redis.Redis.from_url(self.replica.url) as client:
            client.replicaof("127.0.0.1", self.primary.port)
            eventually("replicating", lambda: client.info("replication")["master_link_status"] == "up")
        self.ports = [free_port() for _ in range(3)]
        self.processes = [self._sentinel(folder / f"sentinel-{port}.conf", port) for port in self.ports]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/mymaster/0"
        with redis.Redis(port=self.ports[0]) as client:
            eventually("sentinels agree", lambda: _master(client).get("num-other-sentinels") == 2, seconds=20)
            eventually("the replica is known", lambda: _master(client).get("num-slaves") == 1, seconds=20)

    def _sentinel(self, config: Path, port: int) -> subprocess.Popen[bytes]:
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {config.parent}\n"
            f"sentinel monitor mymaster 127.0.0.1 {self.primary.port} 2\n"
            "sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n"
        )
        with config.with_suffix(".log").open("ab") as log:
            return subprocess.Popen([str(self.binary), str(config), "--sentinel"], stdout=log, stderr=log)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.primary.stop()
        self.replica.stop()


def _master(client: redis.Redis) -> dict[str, Any]:
    try:
        found: dict[str, Any] = client.sentinel_master("mymaster")  # type: ignore[assignment]
    except redis.RedisError:
        return {}
    return found


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    made = Sentinels(tmp_path)
    yield made
    made.stop()


def test_a_failover_by_sentinel_costs_a_pause(tmp_path: Path, sentinels: Sentinels) -> None:
    limits: dict[str, Any] = {"redis_url": sentinels.url, "durability": "durable", **LONG}
    with running_stack(tmp_path, sentinels.primary, "scripted", **limits) as stack:
        readers = read_all(stack, "scripted", NAMES, max_tokens=150)
        for reader in readers:
            reader.started.wait(30)

        sentinels.primary.kill()

        texts = expect_all(readers, 150, pause_s=15)
        # A durable job needs a replica, and the only one is the primary now.
        eventually("refused for want of a replica", lambda: _status(stack) == 503)
        with redis.Redis.from_url(sentinels.replica.url) as client:
            assert client.info("replication")["role"] == "master"
            assert client.llen("rq:queue:scripted") == 0
        assert len(set(texts)) == len(NAMES)


def _status(stack: Stack) -> int:
    return stack.post({"model": "scripted", "messages": ask("x"), "max_tokens": 1}).status_code


@pytest.mark.parametrize("trouble", ["client kill", "stall", "pause"])
def test_dropped_connections_and_stalls_cost_a_pause(tmp_path: Path, own_redis: EmbeddedRedis, trouble: str) -> None:
    with running_stack(tmp_path, own_redis, "scripted", **LONG) as stack:
        readers = read_all(stack, "scripted", NAMES, max_tokens=150)
        for reader in readers:
            reader.started.wait(30)

        match trouble:
            case "client kill":
                for kind in ("normal", "pubsub"):
                    stack.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            case "stall":
                with frozen(own_redis.pid):
                    threading.Event().wait(2)
            case "pause":
                stack.redis.execute_command("CLIENT", "PAUSE", "2000", "ALL")

        texts = expect_all(readers, 150, pause_s=4)
        expect_whole(read_all(stack, "scripted", NAMES, max_tokens=150), texts)


def test_a_redis_that_fills_up_refuses_new_jobs_and_finishes_those_it_has(
    tmp_path: Path, own_redis: EmbeddedRedis
) -> None:
    with running_stack(tmp_path, own_redis, "scripted", **LONG) as stack:
        readers = read_all(stack, "scripted", NAMES, max_tokens=150)
        for reader in readers:
            reader.started.wait(30)
        used: Any = stack.redis.info("memory")
        stack.redis.config_set("maxmemory", int(used["used_memory"] / 0.9))

        eventually("new jobs are refused", lambda: _status(stack) == 429, seconds=5)
        refused = stack.post({"model": "scripted", "messages": ask("x")})
        assert refused.headers["x-penstock-dropped-reason"] == "redis_memory"
        assert int(refused.headers["retry-after"]) >= 1
        stack.redis.config_set("maxmemory", 1)  # now nothing can be written at all
        threading.Event().wait(1)
        stack.redis.config_set("maxmemory", 0)

        expect_all(readers, 150, pause_s=4)
        eventually("accepted again", lambda: _status(stack) == 200, seconds=5)


def test_a_replica_is_refused_and_what_is_missing_is_said(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    def started(command: str, **environment: str) -> tuple[int, str]:
        named = {f"PENSTOCK_{name.upper()}": value for name, value in environment.items()}
        done = subprocess.run(
            [sys.executable, "-m", "cli", command],
            env=named | {"PENSTOCK_REDIS_URL": own_redis.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    with redis.Redis.from_url(own_redis.url) as client:
        assert started("doctor")[0] == 0
        client.config_set("appendonly", "no")
        assert "without an append-only file" in started("doctor")[1]
        code, said = started("api", durability="safe", port=str(free_port()))
        assert code == 2
        assert "PENSTOCK_DURABILITY=safe" in said
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "allkeys-lru")
        code, said = started("doctor")
        assert code == 1
        assert "set noeviction" in said
        client.config_set("maxmemory-policy", "noeviction")
        client.replicaof("127.0.0.1", 1)
        code, said = started("worker")
        assert code == 2
        assert "replica" in said


def test_an_operators_knife_in_the_stream_loses_no_job(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", sequences_max=2, **LONG) as stack:
        readers = read_all(stack, "scripted", NAMES, max_tokens=60)
        eventually("two run, two wait", lambda: _two_run_two_wait(stack))

        stack.redis.xtrim("penstock:stream:scripted", maxlen=0, approximate=False)

        expect_all(readers, 60, pause_s=4)
        readers = read_all(stack, "scripted", NAMES, max_tokens=60)
        eventually("two run, two wait", lambda: _two_run_two_wait(stack))
        stack.redis.flushdb()
        for reader in readers:
            reader.join(timeout=20)
            assert getattr(reader.error, "code", None) == "job_lost"
        eventually("serves on", lambda: _status(stack) == 200, seconds=5)


def _two_run_two_wait(stack: Stack) -> bool:
    """Return True if all four jobs have arrived: two queued jobs without a started one are only the first two."""
    return stack.running() == 2 and stack.redis.llen("rq:queue:scripted") == 2


def test_safe_asks_for_the_disk(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", port=free_port(), appendfsync="always")
    server.start()
    try:
        with running_stack(tmp_path, server, "scripted", durability="safe") as stack:
            assert httpx.get(f"{stack.base}/health/ready").status_code == 200
            assert _status(stack) == 200
    finally:
        server.stop()
