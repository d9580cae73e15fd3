"""The fewest loads with which a schedule that knows the future serves a scenario: dynamic programming over slots.

One model fits at a time. All waiting jobs of the loaded model are served side by side. A schedule counts if it ends by
`ends_s`, and if no model that has work is without a worker for longer than `away_s` at a stretch."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.host_plan.jobs import Job


class _State(NamedTuple):
    """In slots: `loading` is what is left of the load of `model`, `left` what each job needs, `away` how long each
    model has been missed."""

    model: int
    loading: int
    left: tuple[int, ...]
    away: tuple[int, ...]


class Optimum:
    def __init__(self, jobs: Sequence[Job], *, load_s: float, slot_s: float, ends_s: float, away_s: float) -> None:
        self._names = sorted({job.model for job in jobs})
        self._of = [self._names.index(job.model) for job in jobs]
        self._arrives = [math.ceil(job.arrives_s / slot_s) for job in jobs]
        self._work = tuple(math.ceil(job.work_s / slot_s) for job in jobs)
        self._load = math.ceil(load_s / slot_s)
        self._ends = math.ceil(ends_s / slot_s)
        self._away = math.ceil(away_s / slot_s)

    def loads(self, most: int) -> int | None:
        """Return the fewest loads; None if no schedule keeps the bounds with `most` of them."""
        states = {_State(-1, 0, self._work, (0,) * len(self._names)): 0}
        for slot in range(self._ends + 1):
            done = [loads for state, loads in states.items() if not any(state.left)]
            most = min([most, *done])
            if done and all(loads + self._missing(state) >= most for state, loads in states.items()):
                return most
            after: dict[_State, int] = {}
            for state, loads in states.items():
                for chosen, more in self._choices(state):
                    moved = self._moved(chosen, slot) if loads + more + self._missing(chosen) <= most else None
                    if moved and after.get(moved, most + 1) > loads + more:
                        after[moved] = loads + more
            states = after
        return None

    def _missing(self, state: _State) -> int:
        """Return how many loads there must be at least from here on."""
        return len({of for of, left in zip(self._of, state.left, strict=True) if left and of != state.model})

    def _choices(self, state: _State) -> Iterator[tuple[_State, int]]:
        yield state, 0
        if state.loading:
            return
        for model in range(len(self._names)):
            if model != state.model and any(left for left, of in zip(state.left, self._of, strict=True) if of == model):
                yield state._replace(model=model, loading=self._load), 1

    def _moved(self, state: _State, slot: int) -> _State | None:
        """Return the state a slot later; None if a model was missed for too long."""
        serves = -1 if state.loading else state.model
        asked = {
            of
            for of, arrives, left in zip(self._of, self._arrives, state.left, strict=True)
            if left and arrives <= slot
        }
        away = tuple(gone + 1 if model in asked and model != serves else 0 for model, gone in enumerate(state.away))
        if max(away) > self._away:
            return None
        left = tuple(
            left - 1 if left and of == serves and arrives <= slot else left
            for of, arrives, left in zip(self._of, self._arrives, state.left, strict=True)
        )
        return _State(state.model, max(state.loading - 1, 0), left, away)
