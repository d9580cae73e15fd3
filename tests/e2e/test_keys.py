"""API keys for clients and operators: no access without a key, none to another key's data, and clear limits."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.http.middleware import UNVERSIONED
from tests.e2e.harness import Stack, eventually, metric, standalone_stack
from tests.upstreams import in_thread, openai_chat

ASK: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
ADMIN = {"authorization": "Bearer admin-of-this-test"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("guarded")
    settings: dict[str, Any] = {"keys": "required", "admin_key": "admin-of-this-test", "scripted_step_ms": 5}
    with standalone_stack(folder, "scripted", **settings) as stack:
        yield stack


def keys(stack: Stack, *arguments: str, **options: Any) -> str:
    command = [sys.executable, "-m", "cli", "keys", "--redis-url", stack.server.url, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    return str(done.stdout).strip()


def client(stack: Stack, *limits: str) -> openai.OpenAI:
    """Return a client with a new key."""
    return stack.client(api_key=keys(stack, "create", "of a test", *limits))


def test_no_route_lets_anybody_in_without_a_key(guarded: Stack) -> None:
    paths = httpx.get(f"{guarded.base}/openapi.json").json()["paths"]
    versioned = {path: methods for path, methods in paths.items() if path.startswith(("/v1", "/api/v1"))}
    guarded_paths = [(path, method) for path, methods in versioned.items() for method in methods]
    assert len(guarded_paths) > 6

    without_version = [(path.removeprefix("/v1"), method) for path, method in guarded_paths if "{" not in path]
    twins = [(path, method) for path, method in without_version if path.split("/")[1] in UNVERSIONED]
    assert len(twins) > 6
    for path, method in [*guarded_paths, *twins, ("/v1/no/such/route", "get")]:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}, {"x-api-key": "wrong"}):
            answer = httpx.request(method, guarded.base + path, headers=headers)
            assert answer.status_code == 401, path
            error = answer.json()["error"]
            if path.startswith("/v1/messages"):
                assert error["type"] == "authentication_error"  # Anthropic's errors have no code
            else:
                assert error["code"] == "invalid_api_key"


def test_health_and_documentation_need_none(guarded: Stack) -> None:
    for path in ("/health/live", "/health/ready", "/health", "/ping", "/version", "/metrics", "/openapi.json"):
        assert httpx.get(guarded.base + path).status_code == 200


def test_a_key_lets_its_holder_in_until_it_is_revoked(guarded: Stack) -> None:
    secret = keys(guarded, "create", "team a")
    allowed = guarded.client(api_key=secret)
    assert allowed.chat.completions.create(**ASK).usage

    (line,) = [line for line in keys(guarded, "list").splitlines() if "team a" in line]
    keys(guarded, "revoke", line.split()[0])

    eventually("it is unknown", lambda: _refused(allowed))


def test_a_key_that_has_expired_is_unknown(guarded: Stack) -> None:
    short = client(guarded, "--expires", "1s")

    eventually("it is unknown", lambda: _refused(short))


def test_a_key_that_clients_have_already_is_read_from_the_input(guarded: Stack) -> None:
    assert keys(guarded, "create", "old", "--secret", "-", input="sk-of-another-server\n") == "sk-of-another-server"

    assert guarded.client(api_key="sk-of-another-server").models.list().data


def test_models_of_others_are_forbidden_and_not_listed(guarded: Stack) -> None:
    other = client(guarded, "--model", "another")

    with pytest.raises(openai.PermissionDeniedError) as refused:
        other.chat.completions.create(**ASK)

    assert (refused.value.code, refused.value.param) == ("permission_denied", "model")
    assert other.models.list().data == []
    with pytest.raises(openai.PermissionDeniedError):
        other.models.retrieve("scripted")


def test_requests_over_the_limit_are_refused_with_the_time_to_wait(guarded: Stack) -> None:
    limited = client(guarded, "--requests-per-minute", "2", "--tokens-per-minute", "100000")

    first = limited.chat.completions.with_raw_response.create(**ASK)
    limited.completions.create(model="scripted", prompt="x", max_tokens=2)
    with pytest.raises(openai.RateLimitError) as refused:
        limited.embeddings.create(model="scripted", input="x")

    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert 0 < int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30


def test_jobs_at_a_time(guarded: Stack) -> None:
    single = client(guarded, "--concurrent-jobs", "1")
    running = single.chat.completions.create(**(ASK | {"max_tokens": 100_000}), stream=True)
    next(iter(running))
    with pytest.raises(openai.RateLimitError):
        single.chat.completions.create(**ASK)

    running.close()

    eventually("the place is free", lambda: not _refused(single, openai.RateLimitError))


def test_a_budget_that_is_used_up_is_not_tried_again(guarded: Stack) -> None:
    poor = client(guarded, "--tokens-per-month", "8")

    with pytest.raises(openai.RateLimitError) as refused:
        poor.chat.completions.create(**ASK)

    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_key_of_a_lower_class_cannot_ask_for_more(guarded: Stack) -> None:
    low = client(guarded, "--priority", "batch", "--weight", "2.5")

    answer = low.chat.completions.with_raw_response.create(**ASK, extra_headers={"x-penstock-priority": "interactive"})

    job: Any = guarded.redis.hgetall(f"rq:job:{answer.headers['x-penstock-job-id']}")
    assert job[b"class"] == b"2"
    assert job[b"weight"] == b"2.5"


def test_jobs_are_visible_to_their_key_only(guarded: Stack) -> None:
    mine, theirs = client(guarded), client(guarded)
    job_id = mine.chat.completions.with_raw_response.create(**ASK).headers["x-penstock-job-id"]

    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events"):
        assert mine.get(path, cast_to=httpx.Response).status_code == 200
        with pytest.raises(openai.NotFoundError):
            theirs.get(path, cast_to=httpx.Response)


def test_chat_clients_see_what_is_used_and_what_is_left(guarded: Stack) -> None:
    secret = keys(guarded, "create", "of a chat client", "--tokens-per-month", "5000000")
    guarded.client(api_key=secret).chat.completions.create(**ASK)
    headers = {"authorization": f"Bearer {secret}"}

    used = httpx.get(f"{guarded.base}/dashboard/billing/usage?start_date=2026-11-01", headers=headers).json()
    limit = httpx.get(f"{guarded.base}/v1/dashboard/billing/subscription", headers=headers).json()

    assert 0 < used["total_usage"] < 1
    assert limit["hard_limit_usd"] == 5
    assert httpx.get(f"{guarded.base}/dashboard/billing/usage").status_code == 401


def test_an_operator_keeps_keys_over_http(guarded: Stack) -> None:
    with httpx.Client(base_url=f"{guarded.base}/admin", headers=ADMIN) as admin:
        made = admin.post("/keys", json={"name": "by http", "models": ["scripted"], "requests_per_minute": 100}).json()
        guarded.client(api_key=made["secret"]).chat.completions.create(**ASK)
        changed = admin.patch(f"/keys/{made['id']}", json={"priority": "interactive"}).json()
        listed = [key for key in admin.get("/keys").json()["data"] if key["id"] == made["id"]]

        assert changed["requests_per_minute"] == 100
        assert listed[0]["priority"] == "interactive"
        assert listed[0]["tokens_this_month"] > 5
        assert "secret" not in listed[0]
        assert "digest" not in listed[0]
        assert admin.delete(f"/keys/{made['id']}").json()["deleted"]
        assert admin.get(f"/keys/{made['id']}").status_code == 404
        assert admin.post("/keys", json={"name": "x", "requests_per_minute": -1}).status_code == 400
        assert admin.post("/keys", json={"name": "x", "secret": made["secret"]}).status_code == 200
    assert httpx.get(f"{guarded.base}/admin/keys").status_code == 401


def test_every_api_takes_a_key_that_was_made_after_redis_was_emptied(guarded: Stack) -> None:
    _, other = guarded.start_api()
    for base in (guarded.base, other):
        assert httpx.get(f"{base}/v1/models", headers={"authorization": "Bearer unknown"}).status_code == 401
    guarded.redis.flushall()

    made = httpx.post(f"{guarded.base}/admin/keys", headers=ADMIN, json={"name": "new"}).json()

    headers = {"authorization": f"Bearer {made['secret']}"}
    assert [httpx.get(f"{base}/v1/models", headers=headers).status_code for base in (guarded.base, other)] == [200, 200]


def _refused(client: openai.OpenAI, kind: type[openai.APIStatusError] = openai.AuthenticationError) -> bool:
    try:
        client.chat.completions.create(**ASK)
    except kind:
        return True
    return False


def test_what_answers_cost_is_shown_of_their_key(tmp_path: Path) -> None:
    with in_thread(openai_chat()) as server:  # whose usage says 7 and 5 tokens
        options = json.dumps({"urls": server.url, "price": {"input": 2, "output": 10}})
        settings: dict[str, Any] = {"keys": "required", "admin_key": "admin-of-this-test"}
        with standalone_stack(tmp_path, "m", engine="upstream", engine_options=options, **settings) as stack:
            paying, idle = client(stack), client(stack)
            for _ in range(2):
                paying.chat.completions.create(**(ASK | {"model": "m"}))

            shown = httpx.get(f"{stack.base}/admin/keys", headers=ADMIN).json()["data"]
            as_json = json.loads(keys(stack, "list", "--json"))
            lines = keys(stack, "list").splitlines()
            counted = sum(metric(url, "penstock_cost_total") for url in stack.worker_urls())

    assert idle.api_key != paying.api_key
    for listed in (shown, as_json):
        assert sorted((key["cost_micros_this_month"] for key in listed), key=len) == [{}, {"m": 2 * (14 + 50)}]
    assert ["cost 0.000128" in line for line in lines].count(True) == 1
    assert counted == pytest.approx(0.000128)
