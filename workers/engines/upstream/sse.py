"""Server-sent events as a client reads them: from pieces of a body to the data of each event."""

from workers.engines.upstream.errors import UpstreamBroken

EVENT_BYTES_MAX = 8_000_000  # an image or a piece of audio may come in one event


class EventReader:
    """Comments, names and ids of events are skipped. An event without its blank line is none."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes. Raises UpstreamBroken for an event that is too long."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._bytes += len(piece)
        if self._bytes > EVENT_BYTES_MAX:
            raise UpstreamBroken(f"sends an event of more than {EVENT_BYTES_MAX} bytes")
        complete = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif self._data and line in (b"", b"\r"):
                complete.append(b"\n".join(each.removesuffix(b"\r") for each in self._data))
                self._data.clear()
                self._bytes = 0
        return complete
