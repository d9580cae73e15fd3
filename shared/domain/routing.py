"""Names that stand for models: which of a route's models gets a job. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A name over models, in the order in which they are preferred. The next one is asked when a job would wait longer
    than `spill_after_s`. An alias is a route over one model."""

    order: tuple[str, ...]
    spill_after_s: float = math.inf

    @property
    def is_alias(self) -> bool:
        return len(self.order) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """All routes by their names, and the model or route of requests that name none; empty if there is no such."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    default: str = ""

    def models_of(self, name: str) -> tuple[str, ...]:
        """Return the models that the name stands for, each once; a route may name aliases and other routes."""
        return tuple(dict.fromkeys(self._models(name, frozenset())))

    def _models(self, name: str, above: frozenset[str]) -> Iterator[str]:
        if name not in self.routes:
            yield name
        elif name not in above:
            for each in self.routes[name].order:
                yield from self._models(each, above | {name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that may get the job. A model is `warm` while workers serve it. `wait_s` is the estimated wait, with the
    loading of a model that is not loaded. A model that is not `usable` is paused, or could not be loaded."""

    model: str
    warm: bool
    wait_s: float
    usable: bool = True


def preference(candidates: Sequence[Candidate], spill_after_s: float) -> list[str]:
    """Return the models as the job prefers them: warm ones first, and else in the given order, but those on which it
    would wait longer than `spill_after_s` after all others, the shortest wait first. Models that are not usable come
    last."""

    def rank(candidate: Candidate) -> tuple[bool, bool, float, bool]:
        spilt = candidate.wait_s > spill_after_s
        return not candidate.usable, spilt, candidate.wait_s if spilt else 0.0, not candidate.warm

    return [candidate.model for candidate in sorted(candidates, key=rank)]
