"""The default Redis and API of a command: those that `penstock up` runs in this folder."""

import os
from pathlib import Path

from shared.settings import Settings, load_settings

DATA = Path(".penstock")
REDIS_URL_FILE = "redis.url"
API_URL_FILE = "api.url"
API_URL = "http://127.0.0.1:8000/v1"


def operator_settings(redis_url: str | None) -> Settings:
    return load_settings(redis_url=redis_url or noted_url())


def api_url() -> str:
    """Return the URL of the API that `penstock up` runs in this folder, else an API's default URL."""
    noted = DATA / API_URL_FILE
    return noted.read_text().strip() if noted.is_file() else API_URL


def noted_url() -> str | None:
    """Return the URL of the Redis that `penstock up` runs in this folder, unless the environment names one."""
    noted = DATA / REDIS_URL_FILE
    return None if "PENSTOCK_REDIS_URL" in os.environ or not noted.is_file() else noted.read_text().strip()
