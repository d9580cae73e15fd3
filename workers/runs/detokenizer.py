"""From token ids to the text a client sees: whole characters only, nothing past a stop, nothing of a stop."""

from collections.abc import Callable, Sequence

from shared.domain.events import FinishReason

HALF = "\ufffd"
WINDOW = 6  # ids decoded together with new ones, since a token's text depends on its neighbours


class IncrementalDetokenizer:
    """The text of one choice. `push` takes ids one by one and returns the text that is now certain."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, eos_ids: frozenset[int], stop: Sequence[str], tokens_max: int
    ) -> None:
        self._decode = decode
        self._eos_ids = eos_ids
        self._stop = stop
        self._tokens_max = tokens_max
        self._count = 0
        self._ids: list[int] = []
        self._shown = 0  # how many of _ids have their text in _held or beyond
        self._held = ""

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        self._count += 1
        if token in self._eos_ids:
            return self._last(self._held + self._tail(), FinishReason.STOP)
        self._ids.append(token)
        self._held += self._fresh()
        if found := self._first_stop():
            return self._last(self._held[: found[0]], FinishReason.STOP)
        if self._count >= self._tokens_max:
            return self._last(self._held + self._tail(), FinishReason.LENGTH)
        return self._release(), None

    def end(self) -> str:
        """What is left to show when the answer ends without a token that ends it."""
        text, _ = self._last(self._held + self._tail(), FinishReason.STOP)
        return text

    def _fresh(self) -> str:
        """Text of the ids not shown yet, unless it ends inside a character."""
        start = max(self._shown - WINDOW, 0)
        before = self._decode(self._ids[start : self._shown])
        text = self._decode(self._ids[start:])
        if text.endswith(HALF) or len(text) <= len(before):
            return ""
        del self._ids[:start]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _tail(self) -> str:
        """What is left when no token follows: half a character shows as a replacement mark."""
        start = max(self._shown - WINDOW, 0)
        before = self._decode(self._ids[start : self._shown])
        return self._decode(self._ids[start:])[len(before) :]

    def _first_stop(self) -> tuple[int, str] | None:
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found) if found else None

    def _release(self) -> str:
        """All of the held text but an ending that may become a stop."""
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _last(self, text: str, reason: FinishReason) -> tuple[str, FinishReason]:
        self._held = ""
        return text, reason


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
