"""The pages that describe the API, for people at /docs and for programs at /openapi.json. They load nothing from
elsewhere."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel

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
    app = FastAPIOffline(title="Penstock", version=version("penstock"), responses=ERRORS, **options)
    app.openapi = _with_examples(app.openapi)  # type: ignore[method-assign]
    app.add_api_route("/", _to_docs, include_in_schema=False)
    return app


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


def _with_examples(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def openapi() -> dict[str, Any]:
        made = make()
        parts = made["components"]
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{}, {"key": []}]
        for name, example in EXAMPLES.items():
            parts["schemas"][name]["example"] = example
        return made

    return openapi
