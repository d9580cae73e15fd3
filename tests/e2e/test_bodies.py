"""Expensive bodies of 4 MB: they delay no other client, take no memory, and count against their key's requests."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.http.json_route import CONTAINERS_MAX, STRINGS_MAX, VALUES_MAX
from tests.e2e.harness import Stack, standalone_stack

log = logging.getLogger(__name__)
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDING, RERANK, DETOKENIZE, MESSAGE = "/v1/embeddings", "/v1/rerank", "/v1/detokenize", "/v1/messages"
BYTES = 3_999_000
pytestmark = pytest.mark.alone
STOPPED_S = 0.3
MEMORY_MB = 200


def filled(before: str, item: str, after: str) -> list[bytes]:
    """Fill a body between `before` and `after` with as many items as fit and as pass the count of values, so that the
    schema has to refuse it."""
    fitting = (BYTES - len(before) - len(after)) // (len(item) + 1)
    strings, containers = item.count('"') // 2, item.count("[") + item.count("{")
    bounds = [(VALUES_MAX, item.count(",") + 1), (STRINGS_MAX, strings), (CONTAINERS_MAX, containers)]
    passing = min((most - 100) // each for most, each in bounds if each)
    return [(before + ",".join([item] * count) + after).encode() for count in {fitting, min(fitting, passing)}]


def fields(before: str, value: str, after: str, *counts: int) -> list[bytes]:
    return [(before + ",".join(f'"{n}":{value}' for n in range(count)) + after).encode() for count in counts]


M = '{"model":"m",'
HOSTILE: dict[str, tuple[str, list[bytes]]] = {
    "numbers for messages": (CHAT, filled(M + '"messages":[', "0", "]}")),
    "objects for messages": (CHAT, filled(M + '"messages":[', "{}", "]}")),
    "strings for messages": (CHAT, filled(M + '"messages":[', '""', "]}")),
    "small messages": (CHAT, filled(M + '"messages":[', '{"role":"user","content":""}', "]}")),
    "messages of unknown fields": (CHAT, filled(M + '"messages":[', '{"a":0,"b":0,"c":0}', "]}")),
    "numbers for parts": (CHAT, filled(M + '"messages":[{"role":"user","content":[', "0", "]}]}")),
    "small parts": (CHAT, filled(M + '"messages":[{"role":"user","content":[', '{"type":"text","text":""}', "]}]}")),
    "numbers for tools": (CHAT, filled(M + '"messages":[],"tools":[', "0", "]}")),
    "numbers for calls": (CHAT, filled(M + '"messages":[{"role":"assistant","tool_calls":[', "0", "]}]}")),
    "numbers for stop": (CHAT, filled(M + '"messages":[],"stop":[', "0", "]}")),
    "strings for stop tokens": (CHAT, filled(M + '"messages":[],"stop_token_ids":[', '""', "]}")),
    "a large schema": (CHAT, filled(M + '"messages":[],"chat_template_kwargs":{"a":[', '{"":0}', "]}}")),
    "unknown fields": (CHAT, fields(M + '"messages":[],', "0", "}", 330_000, STRINGS_MAX - 100)),
    "logit biases": (CHAT, fields(M + '"messages":[],"logit_bias":{', '"x"', "}}", 270_000, STRINGS_MAX // 2 - 100)),
    "deep arrays": (CHAT, [b"[" * BYTES]),
    "many deep arrays": (CHAT, filled(M + '"messages":[', "[" * 50 + "]" * 50, "]}")),
    "deep objects": (CHAT, [b'{"a":' * (BYTES // 5)]),
    "escapes": (CHAT, filled(M + '"messages":[', '"\\"\\\\"', "]}")),
    "mixed prompts": (COMPLETION, filled(M + '"prompt":[', '"a",0', "]}")),
    "prompts of mixed tokens": (COMPLETION, filled(M + '"prompt":[', '[0,""]', "]}")),
    "inputs of one token": (EMBEDDING, filled(M + '"input":[', "[0]", "]}")),
    "empty inputs": (EMBEDDING, filled(M + '"input":[', "[]", "]}")),
    "many inputs": (EMBEDDING, filled(M + '"input":[', '"a"', "]}")),
    "numbers for documents": (RERANK, filled(M + '"query":"q","documents":[', "0", "]}")),
    "strings for tokens": (DETOKENIZE, filled(M + '"tokens":[', '"a"', "]}")),
    "half a token": (DETOKENIZE, filled(M + '"tokens":[', "0.5", "]}")),
    "numbers for items": (RESPONSE, filled(M + '"input":[', "0", "]}")),
    "small items": (RESPONSE, filled(M + '"input":[', '{"role":"user","content":""}', "]}")),
    "numbers to include": (RESPONSE, filled(M + '"input":"x","include":[', "0", "]}")),
    "numbers for metadata": (RESPONSE, filled(M + '"input":"x","metadata":[', "0", "]}")),
    "numbers for reasoning": (RESPONSE, filled(M + '"input":[{"type":"reasoning","summary":[', "0", "]}]}")),
    "numbers for blocks": (MESSAGE, filled(M + '"max_tokens":1,"messages":[{"role":"user","content":[', "0", "]}]}")),
    "small tools": (MESSAGE, filled(M + '"max_tokens":1,"messages":[],"tools":[', '{"type":"a"}', "]}")),
    "no objects at all": (CHAT, filled("[", "0", "]")),
}


class Watch:
    """Measures the slowest answer of /health/live and the growth of the API process."""

    def __init__(self, stack: Stack) -> None:
        assert stack.api
        self._process = Path(f"/proc/{stack.api.popen.pid}")
        self._url = f"{stack.base}/health/live"
        self._looked, self._over = threading.Event(), threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self.longest_s = 0.0

    def __enter__(self) -> "Watch":
        (self._process / "clear_refs").write_text("5")  # reset the peak
        self._before_kb = self._peak_kb()
        self._watching.start()
        assert self._looked.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watching.join()
        self.taken_mb = (self._peak_kb() - self._before_kb) / 1024

    def _watch(self) -> None:
        with httpx.Client(timeout=60) as client:
            client.get(self._url)  # open the connection first
            self._looked.set()
            while not self._over.wait(0.005):
                began = time.monotonic()
                client.get(self._url)
                self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _peak_kb(self) -> int:
        lines = (self._process / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options: dict[str, Any] = {"keys": "auto", "admin_key": "secret", "scripted_tokens": 4}
    with standalone_stack(tmp_path_factory.mktemp("bodies"), "m=scripted", **options) as made:
        yield made


def post(stack: Stack, path: str, body: bytes, **headers: str) -> httpx.Response:
    typed = {"content-type": "application/json", **headers}
    return httpx.post(stack.base + path, content=body, headers=typed, timeout=120)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_stops_nobody_and_takes_no_memory(stack: Stack, name: str) -> None:
    path, bodies = HOSTILE[name]
    assert max(map(len, bodies)) <= 4_000_000

    with Watch(stack) as seen:
        answers = [post(stack, path, body) for body in bodies]

    log.info("%s: %.3f s, %.0f MB, %s", name, seen.longest_s, seen.taken_mb, [each.text[:150] for each in answers])
    assert {answer.status_code for answer in answers} == {400}
    assert all(len(answer.content) < 5000 for answer in answers)
    assert seen.longest_s < STOPPED_S
    assert seen.taken_mb < MEMORY_MB


@pytest.mark.parametrize(
    "text", ["a,b;" * 900_000, '"\\' * 900_000, "[{" * 1_500_000], ids=["commas", "quotes", "brackets"]
)
def test_a_large_text_is_not_hostile_whatever_it_is_made_of(stack: Stack, text: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 2}).encode()

    with Watch(stack) as seen:
        answer = post(stack, CHAT, body)

    log.info("%.3f s, %.0f MB, %.150s", seen.longest_s, seen.taken_mb, answer.text)
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "context_length_exceeded"
    assert seen.longest_s < STOPPED_S
    assert seen.taken_mb < MEMORY_MB


def test_as_much_as_may_be_in_a_body_stops_nobody(stack: Stack) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "x" * 100}]}
    chat = {"model": "m", "messages": [message] * 10_000, "max_tokens": 2}
    tokens = {"model": "m", "prompt": [[1234] * 6000] * 100, "max_tokens": 1}

    with Watch(stack) as seen:
        answers = [
            post(stack, path, json.dumps(body).encode())
            for path, body in ((CHAT, chat), (COMPLETION, tokens), (MESSAGE, chat))
        ]

    log.info("%.3f s, %.0f MB", seen.longest_s, seen.taken_mb)
    for answer in answers:
        assert answer.status_code == 200 or "context length" in answer.json()["error"]["message"], answer.text
    assert seen.longest_s < STOPPED_S
    assert seen.taken_mb < MEMORY_MB


def test_bad_bodies_use_up_the_requests_of_their_key(stack: Stack) -> None:
    admin = {"authorization": "Bearer secret"}
    limits = {"name": "bad bodies", "requests_per_minute": 3}
    secret = httpx.post(f"{stack.base}/admin/keys", json=limits, headers=admin).json()["secret"]
    mine = {"authorization": f"Bearer {secret}"}
    good = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    unknown = good.replace(b'"m"', b'"nothing"')

    sent = [post(stack, CHAT, body, **mine) for body in (good, b'{"model": 1}', unknown, b"[", b"[", good)]

    assert [answer.status_code for answer in sent] == [200, 400, 404, 429, 429, 429]
    assert 1 <= int(sent[-1].headers["retry-after"]) <= 20
    assert sent[-1].headers["x-penstock-dropped-reason"] == "rate_limit_exceeded"
    assert post(stack, CHAT, good).status_code == 200  # other clients pay nothing
