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
from typing import Any, BinaryIO

from redis.asyncio import Redis

from api.pages import Asked, Body, Pick, page
from shared import keys
from shared.errors import FileInUse, NotFound
from shared.redis_client import Command, translated

SWEPT_AT_ONCE = 100
IN_USE_S = 60  # until an expired file that a batch uses is looked at again
PIECE = 1 << 20
# The id of a batch that has not ended and reads this file, or '' when the file is deleted.
DELETE = """
local record, index, expiring, batches, open = unpack(KEYS)
local id, tenant, batch_prefix = unpack(ARGV)
for _, batch in ipairs(redis.call('ZINTER', 2, batches, open)) do
  local found = redis.call('GET', batch_prefix .. batch)
  if found and cjson.decode(found).input_file_id == id then return batch end
end
redis.call('DEL', record)
redis.call('ZREM', index, id)
redis.call('ZREM', expiring, tenant .. ' ' .. id)
return ''
"""


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
    """Bytes are read and written in threads, so that a slow disk holds nobody's stream up."""

    def __init__(self, folder: Path, client: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._redis = client
        self._clock = clock
        self._delete = client.register_script(DELETE)

    async def create(
        self, source: BinaryIO, *, tenant: str, filename: str, purpose: str, lifetime_s: int
    ) -> FileRecord:
        """Copy the source, from where it stands; whole or not at all. `lifetime_s` 0 for ever."""
        file_id = f"file-{secrets.token_hex(12)}"
        size = await asyncio.to_thread(_copy, source, self.path(file_id))
        record = self.described(
            file_id, tenant=tenant, filename=filename, purpose=purpose, size=size, lifetime_s=lifetime_s
        )
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for command in self.registration(record):
                    pipe.execute_command(*command)
                await pipe.execute()
        return record

    def described(
        self, file_id: str, *, tenant: str, filename: str, purpose: str, size: int, lifetime_s: int
    ) -> FileRecord:
        now = int(self._clock())
        return FileRecord(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=size,
            created_s=now,
            expires_s=now + lifetime_s if lifetime_s else 0,
        )

    def registration(self, record: FileRecord) -> list[Command]:
        """The commands that make a file known, for one transaction with whatever else is to be true at once."""
        known = [each for item in asdict(record).items() for each in item]
        commands: list[Command] = [
            ("HSET", keys.file(record.id), *known),
            ("ZADD", keys.files_of(record.tenant), self._clock(), record.id),
        ]
        if record.expires_s:
            commands.append(("ZADD", keys.FILES_EXPIRING, record.expires_s, f"{record.tenant} {record.id}"))
        return commands

    async def record(self, file_id: str, *, tenant: str) -> FileRecord:
        """Raises NotFound for a file of somebody else, too."""
        with translated():
            found: Any = await self._redis.hgetall(keys.file(file_id))
        known = {name.decode(): value.decode() for name, value in found.items()}
        if known.get("tenant") != tenant or not await asyncio.to_thread(self.path(file_id).exists):
            raise NotFound(f"There is no file {file_id}.", param="file_id")
        numbers = {field.name for field in fields(FileRecord) if field.type is int or field.type == "int"}
        return FileRecord(**{name: int(value) if name in numbers else value for name, value in known.items()})  # type: ignore[arg-type]

    async def page(self, tenant: str, asked: Asked, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.pages` says."""
        return await page(self._redis, keys.files_of(tenant), asked, pick)

    async def delete(self, file_id: str, *, tenant: str) -> None:
        """One that is gone is no error. Raises FileInUse, which names the batch."""
        names = [keys.file(file_id), keys.files_of(tenant), keys.FILES_EXPIRING, keys.batches_of(tenant), keys.BATCHES]
        with translated():
            used_by: Any = await self._delete(keys=names, args=[file_id, tenant, keys.batch("")])
        if used_by:
            batch_id = used_by.decode()
            message = f"File {file_id} is the input of {batch_id}, which has not ended; cancel it or wait for its end."
            raise FileInUse(message, param="file_id")
        await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    async def sweep(self) -> None:
        """Delete files that have expired, except those that a batch still reads."""
        now = self._clock()
        with translated():
            due: Any = await self._redis.zrangebyscore(keys.FILES_EXPIRING, "-inf", now, start=0, num=SWEPT_AT_ONCE)
        for member in due:
            tenant, file_id = member.decode().rsplit(" ", 1)
            try:
                await self.delete(file_id, tenant=tenant)
            except FileInUse:
                with translated():
                    await self._redis.zadd(keys.FILES_EXPIRING, {member: now + IN_USE_S}, xx=True)

    def path(self, file_id: str) -> Path:
        return self._folder / file_id


def _copy(source: BinaryIO, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as out:
            shutil.copyfileobj(source, out, PIECE)
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return size
