"""Compares two jobs: what they wrote, how they ended, what they used, and how long they took. Pure."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared.catalog.job_records import JobRecord
from shared.domain.events import Completed, Delta, Event, Finished

DIFF_LINES_MAX = 2000  # of all that a job wrote, and of the difference
DIFF_CHARS_MAX = 200_000  # of all that a job wrote


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A job with the events of its log."""

    record: JobRecord
    events: Sequence[Event]

    def texts(self) -> list[str]:
        """Return the text of each choice: its reasoning, its answer, and its tool calls."""
        deltas = [event for event in self.events if isinstance(event, Delta)]
        choices = range(max((event.choice for event in deltas), default=-1) + 1)
        return [_text([event for event in deltas if event.choice == choice]) for choice in choices]

    def figures(self) -> dict[str, Any]:
        """Return what is compared beside the text. Times are in seconds, None while they are unknown."""
        usage = next((o.usage for o in self._outcomes() if isinstance(o, Completed)), None)
        waited_s, took_s = self._times()
        output = (
            usage.completion_tokens if usage else sum(len(e.token_ids) for e in self.events if isinstance(e, Delta))
        )
        return {
            "job": self.record.id,
            "model": self.record.model,
            "status": self.record.state,
            "outcome": next((type(outcome).__name__.lower() for outcome in self._outcomes()), None),
            "finish_reasons": [
                event.finish_reason for event in self.events if isinstance(event, Delta) and event.finish_reason
            ],
            "priority": self.record.priority,
            "attempts": self.record.attempts,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "reasoning_tokens": usage.reasoning_tokens if usage else None,
            "completion_tokens": output,
            "cost_micros": usage.cost_micros if usage else None,
            "waited_s": waited_s,
            "took_s": took_s,
            "tokens_per_s": round(output / took_s, 1) if took_s else None,
        }

    def _outcomes(self) -> list[Any]:
        return [event.outcome for event in self.events if isinstance(event, Finished)]

    def _times(self) -> tuple[float | None, float | None]:
        """Return how long the job waited until its first claim, and from there to its end."""
        moments = [(at_ms, what.split(" ")[0]) for at_ms, what in self.record.timeline]
        first = {what: at_ms for at_ms, what in reversed(moments)}
        queued, claimed = first.get("queued"), first.get("claimed")
        if queued is None or claimed is None:
            return None, None
        ended = max((at for at, what in moments if what in ("finished", "failed", "canceled")), default=None)
        return _seconds(queued, claimed), None if ended is None else _seconds(claimed, ended)


def compare(one: Written, other: Written) -> dict[str, Any]:
    """Return the figures of both jobs, whether their texts are the same, and the unified difference of the texts, which
    is cut off if it is too long."""
    before, after = one.texts(), other.texts()
    (old, old_is_cut), (new, new_is_cut) = _lines(before), _lines(after)
    found = difflib.unified_diff(old, new, one.record.id, other.record.id, lineterm="")
    lines = list(islice(found, DIFF_LINES_MAX + 1))
    return {
        "object": "job.comparison",
        "jobs": [one.figures(), other.figures()],
        "same": before == after,
        "diff": lines[:DIFF_LINES_MAX],
        "truncated": old_is_cut or new_is_cut or len(lines) > DIFF_LINES_MAX,
    }


def _text(deltas: Sequence[Delta]) -> str:
    reasoning = "".join(event.reasoning for event in deltas)
    calls: dict[int, str] = {}
    for part in (part for event in deltas for part in event.calls):
        calls[part.call] = calls.get(part.call, "") + (f"{part.name} " if part.name else "") + part.arguments
    answer = "".join(event.text for event in deltas)
    return "\n".join(part for part in (reasoning, answer, *calls.values()) if part)


def _lines(texts: Sequence[str]) -> tuple[list[str], bool]:
    """Return the lines of all choices, each under a title if there are several, and whether some are left out."""
    titled = texts if len(texts) == 1 else [f"[choice {choice}]\n{text}" for choice, text in enumerate(texts)]
    whole = "\n".join(titled)
    lines = whole[:DIFF_CHARS_MAX].splitlines()
    return lines[:DIFF_LINES_MAX], len(whole) > DIFF_CHARS_MAX or len(lines) > DIFF_LINES_MAX


def _seconds(since_ms: int, until_ms: int) -> float:
    return round(max(until_ms - since_ms, 0) / 1000, 3)
