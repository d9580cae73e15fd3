"""The URL of a Redis is masked before people and logs see it."""

import pytest

from shared.domain.errors import SettingsError
from shared.redis.client import connect, masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", None),
        ("redis://reader@host/0", None),
        ("unix:///home/a@b:c/redis.sock?db=0", None),
        ("rediss://host/0?ssl_ca_certs=/etc/ca.pem", None),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://reader:secret@host", "redis://reader:***@host"),
        ("redis://:sec/re@t@host:1/0", "redis://:***@host:1/0"),
        ("rediss://:secr?et@host/0?ssl_ca_certs=f", "rediss://:***@host/0?ssl_ca_certs=f"),
        ("redis+sentinel://u:secret@one:1,two:2/m/0", "redis+sentinel://u:***@one:1,two:2/m/0"),
        ("unix://:secret@/run/redis.sock", "unix://:***@/run/redis.sock"),
        ("rediss://host?password=secret&ssl_password=secret", "rediss://host?password=***&ssl_password=***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str | None) -> None:
    assert masked(url) == (shown or url)


@pytest.mark.parametrize(
    "url", ["redis://:se/cret@host:6379/0", "redis+sentinel://:se/cret@host", "http://:se/cret@host"]
)
def test_a_url_that_cannot_be_read_is_told_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"PENSTOCK_REDIS_URL: .*\*\*\*@host.* cannot be read") as raised:
        connect(url)

    assert "se" not in str(raised.value).partition("://")[2].partition(" cannot")[0]
    assert "cret" not in str(raised.value)
    assert raised.value.__cause__ is None
