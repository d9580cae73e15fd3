"""The length of a model's pauses is learnt from when it had work, and tells if it pays to keep it loaded through the
next one. The host feeds it each time that it reads the demand."""

import math
from dataclasses import dataclass

LONGEST_S = 3600.0
NEWEST_SHARE = 0.5  # of a pause in the estimate, which is a mean of logarithms
DOUBT_MIN, DOUBT_MAX = 4.0, 1024.0


@dataclass(slots=True)
class _Pauses:
    idle_since_s: float
    gap_s: float = LONGEST_S
    doubt: float = DOUBT_MIN
    was_loaded: bool = False
    had_work: bool = False


class Pauses:
    """A pause that ends is what the next one is expected to be like. A model that was kept through a pause in vain, and
    had to go after all, is expected to stay away for longer, and again longer each time: two models that are asked in
    turn, each once the other has answered, would never come back while they are waited for."""

    def __init__(self) -> None:
        self._models: dict[str, _Pauses] = {}

    def observe(self, model: str, *, has_work: bool, loaded: bool, now: float) -> None:
        """Note what is so at this time; `loaded` is true if a worker is ready."""
        seen = self._models.setdefault(model, _Pauses(idle_since_s=now))
        idle_s = now - seen.idle_since_s
        if has_work and not seen.had_work:
            seen.gap_s = _mean(seen.gap_s, idle_s)
            if loaded:
                seen.doubt = max(seen.doubt / DOUBT_MIN, DOUBT_MIN)
        elif seen.was_loaded and not loaded and not has_work and idle_s >= seen.gap_s:
            seen.gap_s = min(seen.doubt * idle_s, LONGEST_S)
            seen.doubt = min(seen.doubt * DOUBT_MIN, DOUBT_MAX)
        if has_work or (loaded and not seen.was_loaded):
            seen.idle_since_s = now
        seen.was_loaded, seen.had_work = loaded, has_work

    def idle_since_s(self, model: str) -> float:
        """Return when the model last had work, or became ready; 0 if it was never observed."""
        return self._models[model].idle_since_s if model in self._models else 0.0

    def gap_s(self, model: str) -> float:
        return self._models[model].gap_s if model in self._models else LONGEST_S

    def forget(self, model: str) -> None:
        self._models.pop(model, None)


def _mean(old_s: float, pause_s: float) -> float:
    newest = min(max(pause_s, 0.1), LONGEST_S)
    return math.exp((1 - NEWEST_SHARE) * math.log(old_s) + NEWEST_SHARE * math.log(newest))
