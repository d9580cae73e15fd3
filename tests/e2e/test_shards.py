"""Models in two Redis servers behind one API behave as in one, and each server fails alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cli.embedded_redis import EmbeddedRedis, find_binary
from tests.e2e.harness import Process, Stack, eventually, frozen, standalone_stack, text_of
from tests.ports import free_port

ADMIN = {"authorization": "Bearer secret"}


class Far:
    """A second Redis with a worker of its own."""

    def __init__(self, folder: Path) -> None:
        self.server = EmbeddedRedis(folder / "far", binary=find_binary(), port=free_port())
        self.server.start()
        self.redis = redis.Redis.from_url(self.server.url)
        self._folder = folder

    def start_worker(self, stack: Stack) -> None:
        environment = {**stack.environment, "PENSTOCK_REDIS_URL": self.server.url}
        command = ["worker", "--model=far=scripted"]
        self._worker = Process(command, environment=environment, log=self._folder / "worker-far.log")
        eventually("both models are there", lambda: set(models(stack)) == {"scripted", "far"}, seconds=30)

    def stop(self) -> None:
        self._worker.stop()
        self.redis.close()
        self.server.stop()


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


@pytest.fixture
def stack(tmp_path: Path, far: Far) -> Iterator[Stack]:
    options: dict[str, Any] = {"shard_urls": far.server.url, "admin_key": "secret", "scripted_step_ms": 5}
    with standalone_stack(tmp_path, "scripted", **options) as made:
        far.start_worker(made)
        yield made
        far.stop()


def models(stack: Stack) -> dict[str, int]:
    return {each["id"]: each["workers"] for each in httpx.get(f"{stack.base}/v1/models").json()["data"]}


def ask(model: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 20, "seed": 7, **options}


def test_a_model_lives_where_its_workers_are_and_nobody_notices(stack: Stack, far: Far, tmp_path: Path) -> None:
    completions: Any = stack.client().chat.completions
    texts = [text_of(completions.create(**ask(model), stream=True)) for model in ("scripted", "far")]
    answer = stack.post(ask("far"))
    job_id = answer.json()["id"]
    _, other_api = stack.start_api()
    shown = [httpx.get(f"{base}/v1/jobs/{job_id}").json() for base in (stack.base, other_api)]
    told = httpx.get(f"{other_api}/v1/jobs/{job_id}/events").text
    listed = httpx.get(f"{other_api}/admin/jobs?state=finished", headers=ADMIN).json()["data"]
    wanted = httpx.get(f"{other_api}/admin/demand", headers=ADMIN).json()["data"]

    assert texts[0] == texts[1] != ""
    assert (far.redis.exists(f"rq:job:{job_id}"), stack.redis.exists(f"rq:job:{job_id}")) == (1, 0)
    assert far.redis.smembers("rq:queues") == {b"rq:queue:far"}
    assert stack.redis.smembers("rq:queues") == {b"rq:queue:scripted"}
    assert [each["status"] for each in shown] == ["finished", "finished"]
    assert "data: [DONE]" in told
    assert {job["model"] for job in listed} == {"scripted", "far"}
    assert {each["model"]: each["workers"] for each in wanted} == {"scripted": 1, "far": 1}


def test_a_job_is_cancelled_and_a_response_is_kept_through_any_api(stack: Stack, far: Far) -> None:
    _, other_api = stack.start_api()
    asked = {"model": "far", "input": "x", "background": True}
    response = httpx.post(f"{stack.base}/v1/responses", json=asked).json()
    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=ask("far", stream=True, max_tokens=5000)) as s:
        cancelled = httpx.post(f"{other_api}/v1/jobs/{s.headers['x-penstock-job-id']}/cancel").json()

    done = eventually("the response is there", lambda: _done(other_api, response["id"]))
    assert cancelled["status"] == "canceled"
    assert done["output"][0]["content"][0]["text"]


def _done(base: str, response_id: str) -> Any:
    found = httpx.get(f"{base}/v1/responses/{response_id}").json()
    return found if found["status"] == "completed" else None


def test_a_redis_that_dies_takes_its_own_models_with_it_and_no_others(stack: Stack, far: Far) -> None:
    chat: Any = stack.client().chat.completions
    whole = text_of(chat.create(**ask("far", max_tokens=400), stream=True))
    near = chat.create(**ask("scripted", max_tokens=400), stream=True)
    cut = chat.create(**ask("far", max_tokens=400), stream=True)
    begun = [next(iter(stream)).choices[0].delta.content or "" for stream in (near, cut)]
    far.server.kill()

    refused = stack.post(ask("far"))
    served = stack.post(ask("scripted"))
    near_text = begun[0] + text_of(near)
    listed = models(stack)
    far.server.start()
    cut_text = begun[1] + text_of(cut)
    again = eventually("it serves again", lambda: stack.post(ask("far")).status_code == 200)

    assert (refused.status_code, refused.headers["x-penstock-dropped-reason"]) == (503, "redis_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert served.status_code == 200
    assert set(listed) == {"scripted"}
    assert near_text == cut_text == whole
    assert again


def test_a_redis_that_freezes_holds_nobody_elses_request_up(stack: Stack, far: Far) -> None:
    chat: Any = stack.client().chat.completions
    near, lost = [chat.create(**ask(model, max_tokens=4000), stream=True) for model in ("scripted", "far")]
    held = chat.create(**ask("far", max_tokens=400), stream=True)
    begun = next(iter(held)).choices[0].delta.content or ""
    whole = text_of(chat.create(**ask("far", max_tokens=400), stream=True))
    with frozen(far.server.pid):
        client = stack.client().with_options(timeout=8, max_retries=0)
        for _ in range(3):
            assert client.chat.completions.create(**ask("scripted")).usage
        listed = [model.id for model in client.models.list()]
        lost.close()
        near.close()
        eventually("who left a healthy Redis is cancelled", lambda: stack.running() == 0)

    assert listed == ["scripted"]
    assert begun + text_of(held) == whole


def test_an_api_starts_without_a_shard_that_is_away_and_finds_it_when_it_comes(stack: Stack, far: Far) -> None:
    far.server.kill()
    _, other_api = stack.start_api()

    answers = {model: _post(other_api, model) for model in ("scripted", "far")}
    far.server.start()

    assert answers == {"scripted": 200, "far": 503}
    assert eventually("it is found", lambda: _post(other_api, "far") == 200)


def _post(base: str, model: str) -> int:
    return httpx.post(f"{base}/v1/chat/completions", json=ask(model), timeout=30).status_code


@pytest.mark.parametrize("url", ["far", "10.0.0.7:6379"])
def test_a_shard_that_cannot_work_stops_the_start(tmp_path: Path, own_redis: EmbeddedRedis, url: str) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    shards, said = (own_redis.url, "set noeviction") if url == "far" else (url, "must specify one of the following")

    with (
        pytest.raises(AssertionError, match=f"PENSTOCK_SHARD_URLS: .*{said}"),
        standalone_stack(tmp_path, "scripted", shard_urls=shards),
    ):
        pytest.fail("it started")
