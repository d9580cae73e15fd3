"""A killed worker of vLLM leaves nothing behind, and its answers go on at either engine as if nothing had happened."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Process, eventually
from tests.vllm.conftest import MODEL, Engines, alive, descendants
from tests.vllm.test_answers import FORM, MESSAGES, TOOL
from workers.main import WORKER_TTL_S

LONG = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
ASKED: dict[str, dict[str, Any]] = {
    "plain": LONG,
    "penalties": {**LONG, "presence_penalty": 0.6, "frequency_penalty": 0.3},
    "two choices": {**LONG, "n": 2},
    "a schema": {"response_format": FORM, "max_tokens": 200},
    "a forced call": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200},
}
KILLED_AFTER = 5  # chunks: the shortest of the answers has more


class Reader(threading.Thread):
    """Reads a stream to its end, and says when a chunk has come."""

    def __init__(self, engines: Engines, **asked: Any) -> None:
        super().__init__()
        usual: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "stream": True}
        self._stream = engines.stack.client().chat.completions.create(**(usual | asked))
        self.pieces: list[Any] = []
        self.at: list[float] = []
        self.begun = threading.Event()

    def run(self) -> None:
        for chunk in self._stream:
            for choice in chunk.choices:
                calls = [call.function.arguments for call in choice.delta.tool_calls or [] if call.function]
                self.pieces.append((choice.index, choice.delta.content or "", *calls, choice.finish_reason or ""))
            self.at.append(time.monotonic())
            if len(self.at) > KILLED_AFTER:
                self.begun.set()
        self.begun.set()

    @property
    def text(self) -> dict[int, str]:
        """Return what each choice said, and how it ended."""
        said: dict[int, str] = {}
        for index, *parts in self.pieces:
            said[index] = said.get(index, "") + "".join(parts)
        return said

    @property
    def longest_pause_s(self) -> float:
        return max(after - before for before, after in zip(self.at, self.at[1:], strict=False))


def read(engines: Engines) -> dict[str, Reader]:
    readers = {name: Reader(engines, **asked) for name, asked in ASKED.items()}
    for reader in readers.values():
        reader.start()
    return readers


@pytest.fixture(scope="module")
def own(engines: Engines) -> Iterator[Process]:
    """A worker of our own engine that computes nothing while it is frozen."""
    worker = engines.own()
    engines.ready(1)
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def expected(engines: Engines, own: Process) -> dict[str, dict[int, str]]:
    readers = read(engines)
    for reader in readers.values():
        reader.join(60)
    return {name: reader.text for name, reader in readers.items()}


def killed_at_vllm(engines: Engines, kill: int, victim: str = "worker") -> tuple[dict[str, Reader], Process, set[int]]:
    """Streams that a worker of vLLM has begun when it, or its engine core, is killed."""
    worker = engines.vllm()
    engines.ready(1)
    processes = descendants(worker.popen.pid)
    readers = read(engines)
    for reader in readers.values():
        assert reader.begun.wait(60)
    os.kill(worker.popen.pid if victim == "worker" else _core(processes), kill)
    return readers, worker, processes


def _core(processes: set[int]) -> int:
    return next(pid for pid in processes if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_killed_workers_answers_go_on_at_our_own_engine(
    engines: Engines, own: Process, expected: dict[str, dict[int, str]]
) -> None:
    own.stop()

    readers, worker, processes = killed_at_vllm(engines, signal.SIGKILL)
    engines.own()

    for name, reader in readers.items():
        reader.join(90)
        assert reader.text == expected[name], name
    worker.popen.wait(5)
    eventually("no process of vLLM is left", lambda: not alive(processes), seconds=5)


def test_a_dead_core_is_noticed_and_its_answers_go_on(engines: Engines, expected: dict[str, dict[int, str]]) -> None:
    other = engines.stack.workers[-1]
    other.popen.send_signal(signal.SIGSTOP)  # so that vLLM gets the jobs
    # Its record lives for WORKER_TTL_S after its last heartbeat.
    eventually("the frozen worker is gone", lambda: engines.stack.served() == 0, seconds=2 * WORKER_TTL_S)

    readers, worker, processes = killed_at_vllm(engines, signal.SIGKILL, "core")
    died = time.monotonic()
    other.popen.send_signal(signal.SIGCONT)

    assert worker.popen.wait(10) == 70
    assert time.monotonic() - died < 5
    for name, reader in readers.items():
        reader.join(90)
        assert reader.text == expected[name], name
    eventually("no process of vLLM is left", lambda: not alive(processes), seconds=5)
    other.stop()


def test_answers_of_our_own_engine_go_on_at_vllm(engines: Engines, expected: dict[str, dict[int, str]]) -> None:
    own = engines.own()
    engines.ready(1)
    readers = read(engines)
    for reader in readers.values():
        assert reader.begun.wait(60)
    worker = engines.vllm()
    own.kill()

    for name, reader in readers.items():
        reader.join(300)
        assert reader.text == expected[name], name
    processes = descendants(worker.popen.pid)
    assert worker.stop() == 0
    eventually("no process of vLLM is left", lambda: not alive(processes), seconds=5)


def test_a_stopped_worker_hands_its_answers_over(engines: Engines, expected: dict[str, dict[int, str]]) -> None:
    worker, second = engines.vllm(), None
    engines.ready(1)
    reader = Reader(engines, **ASKED["plain"])
    reader.start()
    assert reader.begun.wait(60)
    second = engines.own()
    engines.ready(2)

    assert worker.stop() == 0
    reader.join(60)

    assert reader.text == expected["plain"]
    second.stop()
