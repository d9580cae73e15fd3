"""Which Redis an operator's command means: --redis-url, the environment, or the one `penstock up` runs here."""

import os
from pathlib import Path

from shared.settings import Settings, load_settings

DATA = Path(".penstock")
REDIS_URL_FILE = "redis.url"


def operator_settings(redis_url: str | None) -> Settings:
    return load_settings(redis_url=redis_url or noted_url())


def noted_url() -> str | None:
    """The Redis that `penstock up` runs here, unless the environment names one."""
    noted = DATA / REDIS_URL_FILE
    return None if "PENSTOCK_REDIS_URL" in os.environ or not noted.is_file() else noted.read_text().strip()
