"""Which Redis an operator's command means: --redis-url, the environment, or the one `penstock up` runs here."""

from pathlib import Path

from shared.settings import Settings, load_settings

DATA = Path(".penstock")
REDIS_URL_FILE = "redis.url"


def operator_settings(redis_url: str | None) -> Settings:
    settings = load_settings(redis_url=redis_url)
    noted = DATA / REDIS_URL_FILE
    if "redis_url" not in settings.model_fields_set and noted.is_file():
        return load_settings(redis_url=noted.read_text().strip())
    return settings
