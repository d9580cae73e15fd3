"""Every model with its state and what hosts tell of it, as `/admin/models` and `penstock models` show it."""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.catalog.hosting import Hosting, best_of
from shared.catalog.model_registry import ModelRegistry
from shared.domain.hosting import Host, HostedModel, HostedState
from shared.domain.job import ModelInfo

ABSENT = "absent"  # of a model that no host has, and that no worker serves now


async def model_objects(registry: ModelRegistry, hosting: Hosting) -> list[dict[str, Any]]:
    """Return an object for each model that a worker has announced or a host has, in the order of their names. Raises
    QueueUnavailable."""
    infos = {info.name: info for info in await registry.models()}
    records = await hosting.all()
    hosts = {host.id: host for host in await hosting.hosts()}
    names = sorted({*infos, *records})
    return [_object(name, infos.get(name), records.get(name, ()), hosts) for name in names]


def _object(
    name: str, info: ModelInfo | None, records: Sequence[HostedModel], hosts: Mapping[str, Host]
) -> dict[str, Any]:
    workers = info.workers if info else 0
    state = _state(workers, records)
    return {
        "id": name,
        "object": "model",
        "state": state,
        "reason": best_of(records).reason if state == HostedState.FAILED else "",
        "engine": info.engine if info else "",
        "context_length": info.context_length if info else 0,
        "workers": workers,
        "waiting_jobs": info.waiting if info else 0,
        "paused": info.paused if info else False,
        "hosts": [_hosted(record, hosts.get(record.host)) for record in records],
    }


def _state(workers: int, records: Sequence[HostedModel]) -> str:
    """Return the state of the host that serves the model first, unless workers of no host serve it already."""
    state = best_of(records).state if records else ABSENT
    elsewhere = workers > sum(record.workers for record in records)
    return HostedState.READY if elsewhere and state in (ABSENT, HostedState.CONFIGURED, HostedState.FAILED) else state


def _hosted(record: HostedModel, host: Host | None) -> dict[str, Any]:
    return {
        "host": record.host,
        "hostname": host.hostname if host else "",
        "source": record.source,
        "state": record.state,
        "reason": record.reason,
        "phase": record.phase,
        "progress": record.progress,
        "progress_estimated": record.estimated,
        "memory_bytes": record.memory_bytes or None,
        "load_s": record.load_s or None,
        "since": record.since_s,
        "unloads_at": record.unloads_at_s or None,
        "kept_until": record.kept_until_s or None,
        "pinned": record.pinned,
        "workers": record.workers,
        "workers_least": record.workers_least,
        "workers_most": record.workers_most,
    }
