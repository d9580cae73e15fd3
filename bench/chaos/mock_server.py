"""A server of known answers that speaks OpenAI's protocol as vLLM does, to be killed in the middle of its streams:
`python -m bench.chaos.mock_server PORT STEP_S`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

from bench.chaos.known_answers import left_of, next_token, parts
from workers.loading.model_spec import BUILTIN

Json = dict[str, Any]
MODELS = ("tokens", "prefill", "restart", "command")
CONTEXT_LENGTH = 4096
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}


class MockServer:
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._tokenizer = Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))

    async def models(self, _: web.Request) -> web.Response:
        about = {"object": "model", "owned_by": "vllm", "max_model_len": CONTEXT_LENGTH}
        return web.json_response({"object": "list", "data": [{"id": name, **about} for name in MODELS]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, chat_chunks(await request.json()))

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        in_tokens = body.get("return_token_ids")
        return await self._stream(request, self._token_chunks(body) if in_tokens else text_chunks(body))

    async def _stream(self, request: web.Request, chunks: Iterator[Json]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.sleep(self._step_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _token_chunks(self, body: Json) -> Iterator[Json]:
        ids = list(body["prompt"])
        form = self._formed(body)
        for made in range(1, (len(form) if form else body["max_tokens"]) + 1):
            ids.append(form[made - 1] if form else next_token(ids))
            reason = "length" if made == body["max_tokens"] else None
            yield {"choices": [{"index": 0, "text": "", "token_ids": ids[-1:], "finish_reason": reason}]}
            if reason:
                return
        yield {"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "stop"}]}

    def _formed(self, body: Json) -> list[int]:
        """Return the tokens of an answer that keeps to a form, from its beginning; [] for free text."""
        if not body.get("structured_outputs"):
            return []
        _, texts = parts(str(body["prompt"]), body)
        found: list[int] = self._tokenizer.encode("".join(texts), add_special_tokens=False).ids
        return found


def chat_chunks(body: Json) -> Iterator[Json]:
    """Raises ValueError for a beginning that the answer has not."""
    messages = body["messages"]
    question = next(each["content"] for each in reversed(messages) if each["role"] == "user")
    said = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    name, texts = parts(question, body)
    if name:
        yield _delta({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": name, "arguments": ""}}]})
    for text in left_of(texts, said)[: body.get("max_tokens")]:
        arguments = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        yield _delta(arguments if name else {"content": text})
    yield _delta({}, "tool_calls" if name else "stop")
    yield USAGE


def text_chunks(body: Json) -> Iterator[Json]:
    """Raises ValueError for a beginning that the answer has not."""
    question, mark, said = body["prompt"].partition("?")
    for text in left_of(parts(question + mark, body)[1], said)[: body.get("max_tokens")]:
        yield {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    yield USAGE


def _delta(delta: Json, reason: str | None = None) -> Json:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def main(port: int, step_s: float) -> None:
    server, app = MockServer(step_s), web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.completion)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, handle_signals=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
