"""Files that clients upload and batches write: the bytes on disk, what is known of them in Redis. Several API processes
share one folder."""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

from redis.asyncio import Redis

from api.pages import Asked, Body, Pick, page
from shared import keys
from shared.errors import NotFound
from shared.redis_client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """`expires_s` 0 for never."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_s: int
    expires_s: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_s,
            "expires_at": self.expires_s or None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    def __init__(self, folder: Path, client: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._redis = client
        self._clock = clock

    async def create(
        self, source: BinaryIO, *, tenant: str, filename: str, purpose: str, lifetime_s: int, file_id: str = ""
    ) -> FileRecord:
        """Copy the source, from where it stands; whole or not at all. `lifetime_s` 0 for ever."""
        file_id = file_id or f"file-{secrets.token_hex(12)}"
        path = self.path(file_id)
        size = await asyncio.to_thread(_copy, source, path)
        now = int(self._clock())
        record = FileRecord(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=size,
            created_s=now,
            expires_s=now + lifetime_s if lifetime_s else 0,
        )
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.file(file_id), mapping=cast(dict[Any, Any], asdict(record)))
                pipe.zadd(keys.files_of(tenant), {file_id: self._clock()})
                if lifetime_s:
                    pipe.zadd(keys.FILES_EXPIRING, {f"{tenant} {file_id}": record.expires_s})
                await pipe.execute()
        return record

    async def record(self, file_id: str, *, tenant: str) -> FileRecord:
        """Raises NotFound for a file of somebody else, too."""
        with translated():
            found: Any = await self._redis.hgetall(keys.file(file_id))
        known = {name.decode(): value.decode() for name, value in found.items()}
        if known.get("tenant") != tenant or not self.path(file_id).exists():
            raise NotFound(f"There is no file {file_id}.", param="file_id")
        numbers = {field.name for field in fields(FileRecord) if field.type is int or field.type == "int"}
        return FileRecord(**{name: int(value) if name in numbers else value for name, value in known.items()})  # type: ignore[arg-type]

    async def page(self, tenant: str, asked: Asked, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.pages` says."""
        return await page(self._redis, keys.files_of(tenant), asked, pick)

    async def delete(self, file_id: str, *, tenant: str) -> None:
        """One that is gone is no error."""
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(keys.file(file_id))
                pipe.zrem(keys.files_of(tenant), file_id)
                pipe.zrem(keys.FILES_EXPIRING, f"{tenant} {file_id}")
                await pipe.execute()
        await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    async def sweep(self) -> None:
        """Delete what has expired."""
        with translated():
            due: Any = await self._redis.zrangebyscore(keys.FILES_EXPIRING, "-inf", self._clock())
        for member in due:
            tenant, file_id = member.decode().rsplit(" ", 1)
            await self.delete(file_id, tenant=tenant)

    def path(self, file_id: str) -> Path:
        return self._folder / file_id


def _copy(source: BinaryIO, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
        size = out.tell()
    part.rename(path)
    return size
