"""The detokenizer turns token ids into the text a client sees: whole characters, and nothing of a stop or after it."""

from collections.abc import Callable, Sequence

from shared.domain.events import FinishReason
from workers.runs.stop_strings import StopStrings

HALF = "\ufffd"


class IncrementalDetokenizer:
    """The text of one choice. `push` takes ids one by one and returns the text that is now certain.

    A token's text depends on the token before it, so new ids are decoded after the last ones that gave text. These
    begin and end between characters: bytes in a row decode only as a whole.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        eos_ids: frozenset[int],
        stop: Sequence[str],
        tokens_max: int,
        stop_included: bool = False,
    ) -> None:
        """If `stop_included`, the text has the stop string or the token that ends it."""
        self._decode = decode
        self._eos_ids = eos_ids
        self._stops = StopStrings(stop, included=stop_included)
        self._stop_included = stop_included
        self._tokens_max = tokens_max
        self._count = 0
        self._ids: list[int] = []  # the last that gave text, and those after them
        self._before = 0  # how many of them gave it
        self._before_text = ""

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        self._count += 1
        if token in self._eos_ids:
            self._ids += [token] if self._stop_included else []
            return self.end(), FinishReason.STOP
        self._ids.append(token)
        text = self._stops.push(self._fresh())
        if self._stops.found:
            return text, FinishReason.STOP
        if self._count >= self._tokens_max:
            return text + self.end(), FinishReason.LENGTH
        return text, None

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the text; empty if none did."""
        return self._stops.found

    def end(self) -> str:
        """The rest of the text, when the answer ends without a token that ends it."""
        return self._stops.end() + self._tail()

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
