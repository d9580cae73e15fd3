"""Files that clients upload and batches write: the bytes are on disk, the metadata in Redis. Several API processes
share one folder."""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from api.stores.pages import Body, PageRequest, Pick, page
from shared.domain.errors import FileInUse, FilesFull, NotFound, QueueUnavailable
from shared.redis import keys
from shared.redis.client import RUN_COMMANDS, Command, translated, words_of

SWEPT_AT_ONCE = 100
IN_USE_S = 60  # until an expired file that a batch uses is checked again
PIECE = 1 << 20
COUNTED_AT_LEAST = 4096  # bytes: even an empty file takes a block of the disk and a record in Redis
COUNT_HOLDS_S = 3600  # until a tenant's files are counted anew, since a process of an older release counts none
# Returns -1 if the file is registered, now or by the same call before; else the bytes that the tenant's files take.
REGISTER = f"""
{RUN_COMMANDS}
local record, index, count = unpack(KEYS)
local now, size, size_min, bytes_max, holds_s, record_prefix = unpack(ARGV)
local function recount()
  local sum = 0
  for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    local bytes = redis.call('HGET', record_prefix .. id, 'bytes')
    if bytes then sum = sum + math.max(bytes, size_min) end
  end
  redis.call('HSET', count, 'bytes', string.format('%.0f', sum), 'counted_s', now)
  redis.call('EXPIRE', count, holds_s)
  return sum
end
if redis.call('EXISTS', record) == 1 then return -1 end
local used, counted_s = unpack(redis.call('HMGET', count, 'bytes', 'counted_s'))
if not counted_s or math.abs(now - counted_s) >= tonumber(holds_s) then used = recount() end
if used + size > tonumber(bytes_max) then return tonumber(used) end
run_commands(7)
return -1
"""
# Returns the id of a batch that has not ended and reads this file, or '' if the file is deleted.
DELETE = """
local record, index, expiring, batches, open, count = unpack(KEYS)
local id, tenant, batch_prefix, size_min, holds_s = unpack(ARGV)
for _, batch in ipairs(redis.call('ZINTER', 2, batches, open)) do
  local found = redis.call('GET', batch_prefix .. batch)
  if found and cjson.decode(found).input_file_id == id then return batch end
end
local bytes = redis.call('HGET', record, 'bytes')
if bytes then
  redis.call('HINCRBY', count, 'bytes', string.format('%.0f', -math.max(bytes, size_min)))
  redis.call('EXPIRE', count, holds_s)
end
redis.call('DEL', record)
redis.call('ZREM', index, id)
redis.call('ZREM', expiring, tenant .. ' ' .. id)
return ''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """The metadata of a file. `expires_s` is 0 for never."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_s: int
    expires_s: int = 0

    @property
    def counted_bytes(self) -> int:
        return max(self.bytes, COUNTED_AT_LEAST)

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
    """Stores files. Bytes are read and written in threads, so that a slow disk holds up no stream. A tenant's files
    take `tenant_bytes_max` bytes at most; a batch's results count, too, but are always written."""

    def __init__(
        self, folder: Path, client: Redis, *, tenant_bytes_max: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._redis = client
        self._tenant_bytes_max = tenant_bytes_max
        self._clock = clock
        self._register_script = client.register_script(REGISTER)
        self._delete = client.register_script(DELETE)

    async def create(
        self, source: BinaryIO, *, tenant: str, filename: str, purpose: str, lifetime_s: int
    ) -> FileRecord:
        """Copy the source from its current position, completely or not at all. `lifetime_s` is 0 for ever. Raises
        FilesFull."""
        file_id = f"file-{secrets.token_hex(12)}"
        size = await asyncio.to_thread(_copy, source, self.path(file_id))
        record = self.described(
            file_id, tenant=tenant, filename=filename, purpose=purpose, size=size, lifetime_s=lifetime_s
        )
        try:
            await self._register(record)
        except (FilesFull, QueueUnavailable) as error:
            if _said_by_redis(error):
                await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)
            raise
        return record

    async def _register(self, record: FileRecord) -> None:
        """Register the file and count its bytes. Raises FilesFull."""
        names = [keys.file(record.id), keys.files_of(record.tenant), keys.files_bytes(record.tenant)]
        most, size = self._tenant_bytes_max, record.counted_bytes
        words = words_of(self.registration(record))
        args = [self._clock(), size, COUNTED_AT_LEAST, most, COUNT_HOLDS_S, keys.file(""), *words]
        with translated():
            used: Any = await self._register_script(keys=names, args=args)
        if used >= 0:
            raise FilesFull(used=used, bytes_max=most, size=size)

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
        """Return the commands that register a file and count its bytes, to run in one transaction with others."""
        known = [each for item in asdict(record).items() for each in item]
        commands: list[Command] = [
            ("HSET", keys.file(record.id), *known),
            ("ZADD", keys.files_of(record.tenant), self._clock(), record.id),
            ("HINCRBY", keys.files_bytes(record.tenant), "bytes", record.counted_bytes),
            ("EXPIRE", keys.files_bytes(record.tenant), COUNT_HOLDS_S),
        ]
        if record.expires_s:
            commands.append(("ZADD", keys.FILES_EXPIRING, record.expires_s, f"{record.tenant} {record.id}"))
        return commands

    async def record(self, file_id: str, *, tenant: str) -> FileRecord:
        """Return the file's metadata. Raises NotFound for another tenant's file, too."""
        for record in await self.records([file_id], tenant=tenant):
            return record
        raise NotFound(f"There is no file {file_id}.", param="file_id")

    async def records(self, file_ids: Sequence[str], *, tenant: str) -> list[FileRecord]:
        """Return the metadata of those of the files that exist and belong to the tenant, in their order."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for file_id in file_ids:
                    pipe.hgetall(keys.file(file_id))
                found: list[dict[bytes, bytes]] = await pipe.execute()
        own = [_record(each) for each in found if each.get(b"tenant") == tenant.encode()]
        return await asyncio.to_thread(lambda: [record for record in own if self.path(record.id).exists()])

    async def page(self, tenant: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
        """Return a page of the tenant's files; see `api.stores.pages`."""
        return await page(self._redis, keys.files_of(tenant), asked, pick)

    async def delete(self, file_id: str, *, tenant: str) -> None:
        """Delete the file, if it is there. Raises FileInUse, which names the batch."""
        names = [
            keys.file(file_id),
            keys.files_of(tenant),
            keys.FILES_EXPIRING,
            keys.batches_of(tenant),
            keys.BATCHES,
            keys.files_bytes(tenant),
        ]
        with translated():
            used_by: Any = await self._delete(
                keys=names, args=[file_id, tenant, keys.batch(""), COUNTED_AT_LEAST, COUNT_HOLDS_S]
            )
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


def _record(found: Mapping[bytes, bytes]) -> FileRecord:
    known = {name.decode(): value.decode() for name, value in found.items()}
    numbers = {field.name for field in fields(FileRecord) if field.type is int or field.type == "int"}
    return FileRecord(**{name: int(value) if name in numbers else value for name, value in known.items()})  # type: ignore[arg-type]


def _said_by_redis(error: FilesFull | QueueUnavailable) -> bool:
    """Return True if Redis has refused the registration. After a lost connection the file may be registered, and then
    its bytes are needed."""
    return isinstance(error, FilesFull) or isinstance(error.__cause__, ResponseError)


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
