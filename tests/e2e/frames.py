"""Reads and resumes a chat stream with numbered events, as a client does."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx


class Frames:
    """A stream's texts by event number, and its end."""

    def __init__(self) -> None:
        self.text = ""
        self.last_id = ""
        self.ids: list[int] = []  # of whole events
        self.finish: str | None = None
        self.done = False
        self.error: dict[str, Any] | None = None
        self.job_id = ""

    def read(self, response: httpx.Response, *, until: int | None = None) -> "Frames":
        """Read to the end, or until that many events have come."""
        self.job_id = response.headers.get("x-penstock-job-id", "")
        with suppress(httpx.RemoteProtocolError):  # a failed stream never ends cleanly
            self._read(response, until)
        return self

    def _read(self, response: httpx.Response, until: int | None) -> None:
        self._lines: Iterator[str] = response.iter_lines()  # kept, since a dropped iterator closes the connection
        for line in self._lines:
            if line.startswith("data: "):
                self._take(line.removeprefix("data: "))
            elif line.startswith("id: "):
                self.last_id = line.removeprefix("id: ")
                if "." not in self.last_id:
                    self.ids.append(int(self.last_id))
                if until is not None and self.ids and self.ids[-1] >= until:
                    return

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.done = True
            return
        chunk = json.loads(data)
        self.error = chunk.get("error")
        for choice in chunk.get("choices", ()):
            self.text += choice["delta"].get("content") or ""
            self.finish = choice["finish_reason"] or self.finish


def post(
    base: str, request: dict[str, Any], headers: dict[str, str] | None = None, *, until: int | None = None
) -> Frames:
    named = {"x-penstock-event-ids": "true", **(headers or {})}
    with httpx.stream("POST", f"{base}/v1/chat/completions", json=request, headers=named, timeout=60) as response:
        assert response.status_code == 200, response.read()
        return Frames().read(response, until=until)


def pick_up(base: str, job_id: str, **options: Any) -> Frames:
    with httpx.stream("GET", f"{base}/v1/jobs/{job_id}/events", timeout=60, **options) as response:
        assert response.status_code == 200, response.read()
        return Frames().read(response)
