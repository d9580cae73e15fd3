"""The pages that describe the API, for people at /docs and for programs at /openapi.json. They load nothing from other
hosts."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.http.operations import BODIES, OTHERS, PARAMETERS, UPLOAD

REF = "#/components/schemas/{model}"
INTRODUCTION = """
LLM serving that never loses a request. The API is OpenAI's: set a client's `base_url` to this address followed by
`/v1`, and use any of the models that `GET /v1/models` lists.

**Keys.** Where keys are required, each request must carry the header `Authorization: Bearer KEY`; `penstock keys
create` creates a key. `/admin` needs the operator's own key.

**A request is a job.** It waits in its model's queue until a worker has room, and survives the death of an API process
or a worker. The header `x-penstock-job-id` names it: `GET /v1/jobs/{job_id}/events` resumes its stream, also from
another API process. A repeated request with the same `Idempotency-Key` finds the job that the first one created.

**Headers that any request may have:** `x-penstock-priority` (interactive, standard or batch),
`x-penstock-queue-deadline-s` and `x-penstock-run-deadline-s`, `x-penstock-not-before` (when the job may begin) and
`x-penstock-deadline` (when its answer is wanted; both take a time, Unix seconds or a duration), `x-penstock-grace-s`
(how long the job runs on after its client has left; `forever` lets it end), `x-penstock-event-ids: true` (number the
events of a stream).

**Errors** have OpenAI's shape, and Anthropic's below `/v1/messages`. Retry 408, 409, 429 and 5xx after `retry-after`
seconds, unless the answer has `x-should-retry: false`; `x-penstock-dropped-reason` says why nothing was done. Every
other 4xx means that the request is wrong: the error names the parameter, and the request counts against the key's
requests a minute.
"""
MODEL = "penstock-tiny"
MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"model": MODEL, "messages": MESSAGES, "temperature": 0, "stream": False},
    "CompletionRequest": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20},
    "ResponseRequest": {"model": MODEL, "input": "What is 3 + 4?", "temperature": 0},
    "InputTokensRequest": {"model": MODEL, "input": "What is 3 + 4?"},
    "CompactRequest": {"model": MODEL, "input": [{"role": "user", "content": "What is 3 + 4?"}]},
    "ConversationRequest": {"metadata": {"topic": "sums"}},
    "MessagesRequest": {"model": MODEL, "max_tokens": 100, "messages": MESSAGES, "temperature": 0},
    "CountTokensRequest": {"model": MODEL, "messages": MESSAGES},
    "EmbeddingRequest": {"model": MODEL, "input": ["one text", "another"]},
    "RerankRequest": {"model": MODEL, "query": "a fox", "documents": ["a red fox", "the sea"], "top_n": 1},
    "EngineEmbeddingRequest": {"input": ["one text", "another"]},
    "ScoreRequest": {"model": MODEL, "text_1": "a fox", "text_2": ["a red fox", "the sea"]},
    "PoolingRequest": {"model": MODEL, "input": ["one text", "another"], "task": "embed"},
    "TokenCheckRequest": {"prompts": [{"model": MODEL, "prompt": "a fox", "max_tokens": 100}]},
    "TokenizeRequest": {"model": MODEL, "messages": MESSAGES},
    "TokenCountRequest": {"model": MODEL, "messages": MESSAGES, "max_tokens": 100},
    "DetokenizeRequest": {"model": MODEL, "tokens": [2, 300, 301]},
    "NewKey": {"name": "a team", "requests_per_minute": 600, "tokens_per_minute": 100000},
    "ReplayRequest": {"model": MODEL, "since_s": 900, "dry_run": True},
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "The request is wrong, or exceeds a limit: see `retry-after`."},
    "5XX": {"model": Error, "description": "Penstock cannot serve the request: see `retry-after`."},
}


def described_app(*, shown: bool, **options: Any) -> FastAPI:
    """Create the app, with the pages if `shown`. The `options` are FastAPI's."""
    if not shown:
        return FastAPI(openapi_url=None, **options)
    about = {"title": "Penstock", "version": version("penstock"), "description": INTRODUCTION}
    app = FastAPIOffline(**about, responses=ERRORS, **options)
    app.openapi = _completed(app.openapi)  # type: ignore[method-assign]
    app.add_api_route("/", _to_docs, include_in_schema=False)
    return app


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


def _completed(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Complete FastAPI's document with descriptions that the routes lack. It is built once."""

    @cache
    def openapi() -> dict[str, Any]:
        made = make()
        schemas = made["components"]["schemas"]
        made["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        made["security"] = [{}, {"key": []}, {"anthropic_key": []}]
        _, definitions = models_json_schema([(body, "serialization") for body in {*BODIES.values()}], ref_template=REF)
        schemas |= definitions["$defs"]
        for name, example in EXAMPLES.items():
            schemas[name]["example"] = example
        for name, about in schemas.get("Body_create_file_v1_files_post", {"properties": {}})["properties"].items():
            about["description"] = UPLOAD[name]
        for path, verbs in made["paths"].items():
            for verb, operation in verbs.items():
                _describe(operation, (verb, path))
        return made

    return openapi


def _describe(operation: dict[str, Any], key: tuple[str, str]) -> None:
    content: dict[str, Any] = {}
    if body := BODIES.get(key):
        content["application/json"] = {"schema": {"$ref": REF.format(model=body.__name__)}}
    if other := OTHERS.get(key):
        kind, text = other
        content[kind] = {"schema": {"type": "string", "description": text}}
    operation["responses"]["200"]["content"] = content
    for parameter in operation.get("parameters", ()):
        parameter.setdefault("description", PARAMETERS.get(parameter["name"], ""))
