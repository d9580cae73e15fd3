"""Stop strings in a text that comes in parts."""

from collections.abc import Sequence


class StopStrings:
    """`push` returns the text that is now certain: nothing of a stop string, nothing after it, and no ending that may
    become one. `found` is the stop string that ended the text, if one did."""

    def __init__(self, stop: Sequence[str], *, included: bool = False) -> None:
        """If `included`, the text ends with the stop string instead of before it."""
        self._included = included
        self._stop = stop
        self._held = ""
        self.found = ""

    def push(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        if found := [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]:
            cut, self.found = min(found)
            cut += len(self.found) if self._included else 0
        else:
            cut = len(self._held) - max(_overlap(self._held, stop) for stop in self._stop)
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def end(self) -> str:
        """The held ending, when no more text comes."""
        text, self._held = "" if self.found else self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper prefix of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
