"""JSON records in Redis, each under a key of its own with a lifetime: responses, stored chats, batches. Webhook
endpoints and their deliveries are stored in other structures, and share the encoding."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis

from api.stores.pages import Body, PageRequest, Pick, page
from shared.domain.errors import NotFound
from shared.domain.neighbours import known_fields
from shared.queue.protocols import StoredRecord
from shared.redis.client import translated

log = logging.getLogger(__name__)
Record = TypeVar("Record", bound=Any)  # a dataclass with an `id` and a `tenant`
Readers = Mapping[str, Callable[[Any], Any]]  # converters of the fields that JSON cannot express


LATER = {"later": True}
"""Marks a field that release 0.2 does not have. At its default it is left out of the bytes."""


def encode(record: Any) -> str:
    unset = {
        each.name for each in fields(record) if each.metadata == LATER and getattr(record, each.name) == each.default
    }
    return json.dumps({name: value for name, value in asdict(record).items() if name not in unset})


def decode(kind: type[Record], data: bytes, readers: Readers | None = None) -> Record | None:
    """Decode a record; None for invalid bytes. Fields that a later release has added are ignored."""
    try:
        found = json.loads(data)
        read = {name: reader(found[name]) for name, reader in (readers or {}).items()}
        record: Record = kind(**(known_fields(kind, found) | read))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("a record cannot be read", extra={"kind": kind.__name__, "error": repr(error)})
        return None
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind(Generic[Record]):
    """A kind of record. `key` returns the key of an id; `index` the key of a tenant's list of ids, if there is one.
    `name` and `param` stand in errors for a record and its id. `readers` convert the fields that JSON cannot express.
    """

    record: type[Record]
    key: Callable[[str], str]
    name: str
    param: str
    index: Callable[[str], str] | None = None
    readers: Readers | None = None


class JsonStore(Generic[Record]):
    """Reads records. A record that cannot be decoded counts as missing, so that the others can still be read."""

    def __init__(self, client: Redis, kind: RecordKind[Record]) -> None:
        self._redis = client
        self._kind = kind

    async def get(self, record_id: str, *, tenant: str | None = None) -> Record:
        """Return the record. Raises NotFound, also for another tenant's."""
        for record in await self.get_many([record_id]):
            if tenant in (None, record.tenant):
                return record
        raise NotFound(f"There is no {self._kind.name} {record_id}.", param=self._kind.param)

    async def get_many(self, record_ids: Sequence[str]) -> list[Record]:
        """Return the records that exist, in the order of their ids."""
        if not record_ids:
            return []
        with translated():
            found: Any = await self._redis.mget([self._kind.key(record_id) for record_id in record_ids])
        decoded = [decode(self._kind.record, data, self._kind.readers) for data in found if data]
        return [record for record in decoded if record]

    async def page(self, tenant: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
        """Return a page of the tenant's list; see `api.stores.pages`."""
        assert self._kind.index, "this kind has no lists"
        return await page(self._redis, self._kind.index(tenant), asked, pick)


class RecordStore(JsonStore[Record]):
    """Records that the queue writes in the call that accepts their jobs. A tenant's records have at most
    `tenant_bytes_max` bytes together, and each lives for `ttl_s` seconds. They have a `created_ms`."""

    def __init__(self, client: Redis, kind: RecordKind[Record], *, ttl_s: int, tenant_bytes_max: int) -> None:
        super().__init__(client, kind)
        self._ttl_s = ttl_s
        self._tenant_bytes_max = tenant_bytes_max

    def stored(self, record: Record) -> StoredRecord:
        """Return the record as the queue writes and discards it."""
        return StoredRecord(
            key=self._kind.key(record.id),
            id=record.id,
            tenant=record.tenant,
            created_ms=record.created_ms,
            data=encode(record),
            ttl_s=self._ttl_s,
            tenant_bytes_max=self._tenant_bytes_max,
            index=self._kind.index(record.tenant) if self._kind.index else "",
        )
