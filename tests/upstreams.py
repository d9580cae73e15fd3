"""Stand-ins for upstreams: servers that speak as the real ones are documented to speak, and fail when they are told."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]
HELD_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of one request. With a `status` it is answered at once. Otherwise its stream begins, and after
    `after` events it is cut, stands still (`stall`), or has an `error` for its last event."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    after: int = 0
    stall: bool = False
    error: Any = None


@dataclass(slots=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: Json


Events = Callable[[Json], Iterator[Json]]


class StandIn:
    """A server of one model. `events` makes the events of a stream from the body of its request; `answers` are whole
    answers by path. Each request takes the next of `faults`, if there is one. `step_s` is the time between events."""

    def __init__(
        self,
        events: Mapping[str, Events],
        *,
        answers: Mapping[str, Callable[[Json], Any]] | None = None,
        done: bool = True,
        named: bool = False,
    ) -> None:
        self.received: list[Received] = []
        self.faults: deque[Fault | None] = deque()
        self.step_s = 0.0
        self.running = 0
        self.left = threading.Event()  # a client has closed its connection in the middle
        self.url = ""
        self._events = events
        self._answers = answers or {}
        self._done = done
        self._named = named  # with an `event:` line, as Anthropic's

    @property
    def bodies(self) -> list[Json]:
        return [each.body for each in self.received]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        path = request.path.removeprefix("/v1")
        self.received.append(Received(path, dict(request.headers), body))
        fault = self.faults.popleft() if self.faults and request.method == "POST" else None
        if fault and fault.status:
            return web.json_response(fault.body or {}, status=fault.status, headers=fault.headers)
        streams = path in self._events and body.get("stream")
        if not streams and (make := self._answers.get(path)):
            return web.json_response(make(body))
        if path not in self._events:
            return web.json_response({"error": {"message": "no such route"}}, status=404)
        self.running += 1
        try:
            return await self._stream(request, list(self._events[path](body)), fault)
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, events: list[Json], fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": a comment\n\n")
        for event in events[: fault.after] if fault else events:
            await self._write(response, event)
            await asyncio.sleep(self.step_s)
        if fault and fault.stall:
            await asyncio.sleep(HELD_S)
        if fault and fault.error is None:
            assert request.transport
            request.transport.abort()
            return response
        if fault:
            await self._write(response, fault.error)
        if self._done:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _write(self, response: web.StreamResponse, event: Json) -> None:
        name = f"event: {event['type']}\n" if self._named else ""
        await response.write(f"{name}data: {json.dumps(event)}\n\n".encode())


@asynccontextmanager
async def serving(stand_in: StandIn, port: int = 0) -> AsyncIterator[StandIn]:
    """Serve on loopback until left."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stand_in.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield stand_in
    finally:
        await runner.cleanup()


@contextmanager
def in_thread(stand_in: StandIn) -> Iterator[StandIn]:
    """Serve on loopback from a thread of its own, for tests that block."""
    ready, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serving(stand_in):
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stand_in
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


FIRST = 300
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def chunk(delta: Json, reason: str | None = None, **more: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def words_of(body: Json, words: Sequence[str]) -> Iterator[str]:
    """The words of the answer that a message of the assistant at the end has not said yet."""
    last = body["messages"][-1]
    said = last["content"] if last["role"] == "assistant" else ""
    if isinstance(said, list):
        said = "".join(part["text"] for part in said)
    for word in words:
        if said:
            said = said.removeprefix(word)
        else:
            yield word


def openai_chat(words: Sequence[str] = ("one", " two", " three", " four", " five"), **first: Any) -> StandIn:
    """A chat that says these words. `first` is in its first delta."""

    def events(body: Json) -> Iterator[Json]:
        yield chunk({"role": "assistant", "content": "", **first})
        for word in words_of(body, words):
            yield chunk({"content": word})
        yield chunk({}, "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {"id": "c-1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}

    models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]}
    return StandIn({"/chat/completions": events}, answers={"/models": lambda body: models})


def counting(prompt: Sequence[int]) -> Iterator[int]:
    """Tokens that count on from the end of the prompt: the answer is known, wherever it is continued."""
    last = prompt[-1] if prompt[-1] >= FIRST else FIRST - 1
    yield from range(last + 1, FIRST + 60)


def budgeted_chat(words: Sequence[str]) -> StandIn:
    """A chat that counts a token for each word, and keeps to `max_tokens`."""

    def events(body: Json) -> Iterator[Json]:
        left = list(words_of(body, words))
        budget = body.get("max_tokens", len(left))
        for word in left[:budget]:
            yield chunk({"content": word})
        yield chunk({}, "length" if budget < len(left) else "stop")
        count = min(budget, len(left))
        yield {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}}

    return StandIn({"/chat/completions": events})


def saying(events: Sequence[Json], path: str = "/chat/completions", **more: Any) -> StandIn:
    """A server that answers every request with these events."""
    return StandIn({path: lambda body: iter(events)}, **more)


def anthropic(words: Sequence[str] = ("one", " two", " three", " four", " five")) -> StandIn:
    """Anthropic's Messages API: a text, with the spaces that a beginning has lost said again."""

    def events(body: Json) -> Iterator[Json]:
        yield {"type": "message_start", "message": {"usage": {"input_tokens": 4, "cache_read_input_tokens": 3}}}
        yield {"type": "ping"}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for word in words_of(body, words):
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
        yield {"type": "message_stop"}

    return StandIn({"/messages": events}, done=False, named=True)


def token_server(answer: Callable[[Sequence[int]], Iterator[int]], *, owned_by: str = "vllm") -> StandIn:
    """vLLM's `/v1/completions` with `return_token_ids`: `answer` makes the tokens that follow a prompt."""

    def events(body: Json) -> Iterator[Json]:
        for made, token in enumerate(answer(body["prompt"]), 1):
            reason = "length" if made == body["max_tokens"] else None
            choice = {"index": 0, "text": "?", "token_ids": [token], "finish_reason": reason}
            yield {"id": "c", "object": "text_completion", "choices": [choice]}
            if reason:
                return
        yield {"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "stop"}]}

    models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owned_by, "max_model_len": 2048}]}
    return StandIn({"/completions": events}, answers={"/models": lambda body: models})
