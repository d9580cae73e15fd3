"""The detokenizer turns token ids into the text a client sees: whole characters, and nothing of a stop or after it."""

from collections.abc import Callable, Sequence

from shared.domain.events import FinishReason

HALF = "\ufffd"


class IncrementalDetokenizer:
    """The text of one choice. `push` takes ids one by one and returns the text that is now certain.

    A token's text depends on the token before it, so new ids are decoded after the last ones that gave text. These
    begin and end between characters: bytes in a row decode only as a whole.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, eos_ids: frozenset[int], stop: Sequence[str], tokens_max: int
    ) -> None:
        self._decode = decode
        self._eos_ids = eos_ids
        self._stop = stop
        self._tokens_max = tokens_max
        self._count = 0
        self._ids: list[int] = []  # the last that gave text, and those after them
        self._before = 0  # how many of them gave it
        self._before_text = ""
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
        """The rest of the text, when the answer ends without a token that ends it."""
        text, _ = self._last(self._held + self._tail(), FinishReason.STOP)
        return text

    def _fresh(self) -> str:
        """Text of the ids not shown yet, unless it ends inside a character."""
        text = self._tail()
        if not text or text.endswith(HALF):
            return ""
        del self._ids[: self._before]
        self._before = len(self._ids)
        self._before_text = self._decode(self._ids)
        return text

    def _tail(self) -> str:
        """Text of the ids not shown yet; half a character is a replacement mark."""
        text = self._decode(self._ids)
        if text.startswith(self._before_text):
            return text[len(self._before_text) :]
        return self._decode(self._ids[self._before :])  # a byte that is no character spoils those beside it

    def _first_stop(self) -> tuple[int, str] | None:
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found) if found else None

    def _release(self) -> str:
        """The held text, except an ending that may become a stop."""
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _last(self, text: str, reason: FinishReason) -> tuple[str, FinishReason]:
        self._held = ""
        return text, reason


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper prefix of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
