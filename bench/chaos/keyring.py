"""Creates and revokes API keys of a site, as its operator does."""

from typing import Any

from redis.asyncio import Redis

from bench.chaos.site import Site
from shared.catalog.api_keys import ApiKeyStore


async def limited_key(site: Site, **limits: Any) -> tuple[str, str]:
    """Create a key with limits; return its id and its secret."""
    client = Redis.from_url(site.redis.url)
    try:
        key, secret = await ApiKeyStore(client).create("chaos", **limits)
        return key.id, secret
    finally:
        await client.aclose()


async def revoke(site: Site, key_id: str) -> None:
    client = Redis.from_url(site.redis.url)
    try:
        await ApiKeyStore(client).revoke(key_id)
    finally:
        await client.aclose()
