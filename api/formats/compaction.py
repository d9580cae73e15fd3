"""Formats events as summaries of a response's input."""

from collections.abc import Sequence
from typing import Any

from api.formats.response import item_object, response_usage
from api.formats.sealed import seal
from shared.domain.events import Delta, Event, Usage
from shared.domain.job import Job


def compacts_items(items: Sequence[dict[str, Any]]) -> bool:
    """Return whether the items ask for a compaction in place of an answer."""
    return bool(items) and items[-1]["type"] == "compaction_trigger"


class CompactionCollector:
    """Collects the answer of `/v1/responses/compact`: what the user `said`, and the summary of the rest."""

    def __init__(self, job: Job, said: Sequence[dict[str, Any]]) -> None:
        self._job = job
        self._said = said
        self._texts: list[str] = []

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._texts.append(event.text)

    def body(self, usage: Usage) -> dict[str, Any]:
        base = self._job.id.rpartition("-")[2]
        summary = {"id": f"cmp_{base}_0", "type": "compaction", "encrypted_content": seal("".join(self._texts).strip())}
        kept = [{"id": f"msg_{base}_{at}", "status": "completed", **item} for at, item in enumerate(self._said, 1)]
        return {
            "id": f"resp_{base}",
            "object": "response.compaction",
            "created_at": self._job.created_ms // 1000,
            "output": [*map(item_object, kept), summary],
            "usage": response_usage(usage),
        }
