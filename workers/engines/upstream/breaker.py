"""A circuit breaker: an upstream that fails again and again is left alone for a while, then tried with one request.
Pure; the time is passed in, in seconds."""

from collections import deque

FAILURES, WITHIN_S = 5, 10.0
FIRST_PAUSE_S, PAUSE_S_MAX = 2.0, 60.0
TRIAL_S_MAX = 120.0  # a trial that has not ended by then is forgotten
LOOK_S = 1.0  # how long to wait for a trial before looking again


class Breaker:
    """Closed, it lets everything through. FAILURES within WITHIN_S open it, for a pause that doubles each time. After
    the pause one request is let through: its success closes the breaker, its failure opens it again."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._openings = 0
        self._until = 0.0
        self._trial_since: float | None = None

    def open_for(self, now: float) -> float:
        """For how many seconds nothing is let through; 0 if a request may pass now."""
        if not self._openings:
            return 0.0
        if now < self._until:
            return self._until - now
        if self._trial_since is None:
            return 0.0
        return min(LOOK_S, max(0.0, self._trial_since + TRIAL_S_MAX - now))

    def begin(self, now: float) -> None:
        """A request passes. Where the breaker has been open, it is the trial."""
        if self._openings:
            self._trial_since = now

    def succeeded(self) -> None:
        self._failures.clear()
        self._openings, self._trial_since = 0, None

    def left(self) -> None:
        """A request ended without a verdict, since its client left."""
        self._trial_since = None

    def failed(self, now: float) -> None:
        trial, self._trial_since = self._trial_since is not None, None
        self._failures.append(now)
        often = len(self._failures) == FAILURES and now - self._failures[0] <= WITHIN_S
        if trial or (often and now >= self._until):
            self._openings += 1
            self._until = now + min(FIRST_PAUSE_S * 2 ** (self._openings - 1), PAUSE_S_MAX)
            self._failures.clear()
