"""The pages that describe the API, for people at /docs and for programs at /openapi.json. They load nothing from
elsewhere."""

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

**Keys.** Where keys are required, each request has the header `Authorization: Bearer KEY`; `penstock keys create` makes
one. `/admin` needs the operator's own key.

**A request is a job.** It waits in its model's queue until a worker has room, and survives the death of either side.
`x-penstock-job-id` names it: `GET /v1/jobs/{job_id}/events` picks its stream up again, also from another API process.
Sending a request again with the same `Idempotency-Key` finds the job that it made before.

**Headers that any request may have:** `x-penstock-priority` (interactive, standard or batch),
`x-penstock-queue-deadline-s` and `x-penstock-run-deadline-s`, `x-penstock-grace-s` (how long the job goes on when its
client has left; `forever` to let it end), `x-penstock-event-ids: true` (number the events of a stream).

**Refusals** have OpenAI's shape. 408, 409, 429 and 5xx are worth another try, after `retry-after` seconds, unless
`x-should-retry: false` says otherwise; `x-penstock-dropped-reason` says why nothing was done. Every other 4xx is the
request's own fault: it names the parameter, and takes one of the key's requests a minute.
"""
MODEL = "penstock-tiny"
MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]
EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"model": MODEL, "messages": MESSAGES, "temperature": 0, "stream": False},
    "CompletionRequest": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20},
    "ResponseRequest": {"model": MODEL, "input": "What is 3 + 4?", "temperature": 0},
    "EmbeddingRequest": {"model": MODEL, "input": ["one text", "another"]},
    "RerankRequest": {"model": MODEL, "query": "a fox", "documents": ["a red fox", "the sea"], "top_n": 1},
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
    "4XX": {"model": Error, "description": "The request is at fault, or too much: see `retry-after`."},
    "5XX": {"model": Error, "description": "Penstock is: see `retry-after`."},
}


def described_app(*, shown: bool, **options: Any) -> FastAPI:
    """`shown`: whether the pages are there. `options`: as for FastAPI."""
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
    """FastAPI's document, with what the routes do not say. It is made once."""

    @cache
    def openapi() -> dict[str, Any]:
        made = make()
        schemas = made["components"]["schemas"]
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{}, {"key": []}]
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
