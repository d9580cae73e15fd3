"""Options in headers: resumed streams, repeated requests, deadlines and classes."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.frames import Frames, pick_up, post
from tests.e2e.harness import Stack, eventually, running_stack, standalone_stack, text_of
from tests.e2e.test_faults import ask

TOKENS = 60
SETTINGS: Any = {
    "scripted_step_ms": 10,
    "scripted_tokens": 100_000,
    "sequences_max": 4,
    "admin_key": "operator",
    "keep_alive_s": 0.2,
    "drain_s": 1,
}
NONE = {"authorization": "Bearer none"}  # the client's default key
ADMIN = {"authorization": "Bearer operator"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("pick-up")
    with standalone_stack(folder, "scripted", **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def other(stack: Stack) -> str:
    """Return the URL of a second API."""
    return stack.start_api()[1]


def halted(pid: int) -> bool:
    """Return True if the API's signal has arrived: a client that disconnects earlier counts as one that left."""
    return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)


def body(content: str = "pick me up", *, stream: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "model": "scripted",
        "messages": ask(content),
        "max_tokens": TOKENS,
        "stream": stream,
        "temperature": 0,
        **more,
    }


def state(stack: Stack, job_id: str) -> str:
    return str(httpx.get(f"{stack.base}/v1/jobs/{job_id}").json()["status"])


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> Frames:
    frames = post(stack.base, body())
    assert frames.finish == "length"
    return frames


def test_every_event_has_its_number_when_asked_for(undisturbed: Frames) -> None:
    assert undisturbed.ids == list(range(TOKENS + 2))
    assert undisturbed.done


def test_the_openai_client_reads_numbered_events_and_keep_alives(stack: Stack, undisturbed: Frames) -> None:
    httpx.post(f"{stack.base}/admin/models/scripted/pause", headers=ADMIN)
    headers = {"x-penstock-event-ids": "true", "Idempotency-Key": "numbered"}
    stream = stack.client().chat.completions.create(**body(), extra_headers=headers)  # returns at its headers
    waiting: Any = stack.redis.lrange("rq:queue:scripted", 0, 0)
    # A client that begins to read later gets the same comments later.
    missing = {": position 1", ": keep-alive"}
    with httpx.stream("GET", f"{stack.base}/v1/jobs/{waiting[0].decode()}/events", headers=NONE) as later:
        for line in later.iter_lines():
            missing.discard(line)
            if not missing:
                break
    httpx.post(f"{stack.base}/admin/models/scripted/resume", headers=ADMIN)

    assert text_of(stream) == undisturbed.text


@pytest.mark.parametrize("way", ["Last-Event-ID", "starting_after"])
def test_a_stream_is_picked_up_on_another_api_in_the_middle(
    stack: Stack, other: str, undisturbed: Frames, way: str
) -> None:
    first = post(stack.base, body(), until=20, headers={"x-penstock-grace-s": "30"})
    cursor: dict[str, Any] = (
        {"headers": {way: first.last_id}} if way == "Last-Event-ID" else {"params": {way: first.last_id}}
    )

    second = pick_up(other, first.job_id, **cursor)

    assert first.text + second.text == undisturbed.text
    assert first.ids + second.ids == undisturbed.ids
    assert second.finish == "length"
    assert second.done


def test_a_stream_is_picked_up_between_two_frames_of_one_event(stack: Stack, other: str) -> None:
    request = body(n=2, stream_options={"include_usage": True})
    headers = {"x-penstock-event-ids": "true", "x-penstock-grace-s": "30"}
    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=request, headers=headers, timeout=60) as answer:
        job_id = answer.headers["x-penstock-job-id"]
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(3)]  # the opening of the first of two choices
    events = f"{other}/v1/jobs/{job_id}/events"

    rest = httpx.get(events, headers={"Last-Event-ID": first[1].removeprefix("id: ")}, timeout=60)

    whole = without_comments(httpx.get(events, timeout=60).text)
    assert "\n".join(first) + "\n" + without_comments(rest.text) == whole
    *_, usage_id, _, _, done_id, _, _ = whole.split("\n")
    assert float(usage_id.removeprefix("id: ")) == int(done_id.removeprefix("id: ")) - 1 + 0.1
    assert httpx.get(events, params={"starting_after": usage_id.removeprefix("id: ")}).text.startswith("data: [DONE]")


def without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(":"))


def test_a_finished_job_is_read_again_from_the_start_by_many(stack: Stack, other: str, undisturbed: Frames) -> None:
    with ThreadPoolExecutor(20) as pool:
        again = list(pool.map(lambda n: pick_up((stack.base, other)[n % 2], undisturbed.job_id), range(40)))

    assert {frames.text for frames in again} == {undisturbed.text}
    assert all(frames.done for frames in again)


def test_a_client_goes_on_elsewhere_when_its_api_is_killed_or_frozen(
    stack: Stack, other: str, undisturbed: Frames
) -> None:
    for sign in (signal.SIGKILL, signal.SIGSTOP):
        api, base = stack.start_api()
        with httpx.stream(
            "POST", f"{base}/v1/chat/completions", json=body(), headers={"x-penstock-event-ids": "true"}, timeout=60
        ) as response:
            first = Frames().read(response, until=10)
            api.popen.send_signal(sign)
            eventually("the API is dead or frozen", partial(halted, api.popen.pid))
        second = pick_up(other, first.job_id, headers={"Last-Event-ID": first.last_id})
        api.popen.send_signal(signal.SIGCONT)  # it finds that its client left, but it must not cancel the job

        assert first.text + second.text == undisturbed.text
        assert state(stack, first.job_id) == "finished"
        api.kill()


def test_an_api_that_stops_cuts_long_streams_and_cancels_none(stack: Stack, other: str) -> None:
    api, base = stack.start_api()
    request = body(max_tokens=400)
    headers = {"x-penstock-event-ids": "true"}
    with httpx.stream("POST", f"{base}/v1/chat/completions", json=request, headers=headers, timeout=60) as response:
        threading.Timer(0.3, api.terminate).start()
        first = Frames().read(response)
    api.popen.wait(timeout=10)

    second = pick_up(other, first.job_id, headers={"Last-Event-ID": first.last_id})

    assert not first.done
    assert first.ids + second.ids == list(range(402))
    assert second.done


def test_an_api_that_stops_tells_who_waits_for_a_whole_answer_to_ask_again(stack: Stack, other: str) -> None:
    api, base = stack.start_api()
    long, key = body("whole", stream=False, max_tokens=250), {"idempotency-key": "once more"}
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(httpx.post, f"{base}/v1/chat/completions", json=long, timeout=60, headers=headers)
            for headers in (key, {})
        ]
        eventually("both run", lambda: stack.running() == 2)
        api.terminate()
        answers = [each.result() for each in asked]
    again = httpx.post(f"{other}/v1/chat/completions", json=long, timeout=60, headers=key)

    assert [answer.status_code for answer in answers] == [503, 503]
    assert {answer.json()["error"]["code"] for answer in answers} == {"shutting_down"}
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert again.json()["usage"]["completion_tokens"] == 250
    eventually("the one without a key was let go", lambda: stack.running() == 0)


@pytest.mark.alone
def test_a_job_outlives_its_client_by_its_grace(stack: Stack) -> None:
    first = post(stack.base, body(max_tokens=10_000), until=3, headers={"x-penstock-grace-s": "0.5"})
    left = time.monotonic()

    assert state(stack, first.job_id) == "started"
    eventually("cancelled", lambda: state(stack, first.job_id) == "canceled", seconds=3)
    assert time.monotonic() - left > 0.4
    kept = post(stack.base, body(), until=3, headers={"x-penstock-grace-s": "forever"})
    eventually("finished", lambda: state(stack, kept.job_id) == "finished")


def test_a_job_of_another_key_is_as_good_as_none(stack: Stack, undisturbed: Frames) -> None:
    stranger = {"authorization": "Bearer somebody-else"}
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = httpx.request(method, f"{stack.base}/v1/jobs/{undisturbed.job_id}{path}", headers=stranger)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_a_job_is_cancelled_by_request(stack: Stack) -> None:
    first = post(stack.base, body(max_tokens=10_000), until=3, headers={"x-penstock-grace-s": "30"})

    answer = httpx.post(f"{stack.base}/v1/jobs/{first.job_id}/cancel")

    assert answer.json()["status"] == "canceled"
    eventually("slot free", lambda: stack.running() == 0, seconds=2)
    rest = pick_up(stack.base, first.job_id)
    assert rest.error
    assert rest.error["code"] == "cancelled"


def test_a_request_that_comes_twice_is_one_job(stack: Stack, other: str, undisturbed: Frames) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = post(stack.base, body(), key, until=10)

    second = post(other, body(), key)
    third = post(stack.base, body(), key)

    assert first.job_id == second.job_id == third.job_id
    assert second.text == third.text == undisturbed.text
    record: Any = stack.redis.ttl(f"penstock:log:{first.job_id}")
    assert record > 80_000
    whole = httpx.post(
        f"{stack.base}/v1/chat/completions", json=body(stream=False), headers={"Idempotency-Key": "order-2"}, timeout=30
    )
    again = httpx.post(
        f"{stack.base}/v1/chat/completions", json=body(stream=False), headers={"Idempotency-Key": "order-2"}, timeout=30
    )
    assert whole.json() == again.json()


def test_a_key_with_another_body_or_of_another_tenant(stack: Stack) -> None:
    url, key = f"{stack.base}/v1/chat/completions", {"Idempotency-Key": "order-3"}
    first = httpx.post(url, json=body(stream=False), headers=key, timeout=30)

    changed = httpx.post(url, json=body("something else", stream=False), headers=key, timeout=30)
    stranger = httpx.post(url, json=body(stream=False), headers=key | {"authorization": "Bearer x"}, timeout=30)

    assert changed.status_code == 422
    assert changed.json()["error"]["code"] == "idempotency_key_reused"
    assert stranger.status_code == 200
    assert stranger.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_job_over_its_run_deadline_ends_with_what_it_has(stack: Stack, stream: bool) -> None:
    headers = {"x-penstock-run-deadline-s": "0.3"}
    request = body(max_tokens=10_000, stream=stream)
    began = time.monotonic()

    with httpx.stream("POST", f"{stack.base}/v1/chat/completions", json=request, headers=headers, timeout=30) as answer:
        if stream:
            frames = Frames().read(answer)
            error = frames.error
            assert len(frames.text.split()) > 10
        else:
            assert answer.status_code == 408
            error = json.loads(answer.read())["error"]

    assert error
    assert error["code"] == "deadline_exceeded"
    assert "run deadline" in error["message"]
    assert time.monotonic() - began < 2
    eventually("slot free", lambda: stack.running() == 0, seconds=2)


def test_urgent_jobs_pass_those_that_wait(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    with running_stack(tmp_path, own_redis, "scripted", scripted_step_ms=5, sequences_max=1) as stack:
        stack.workers.pop().stop()
        url = f"{stack.base}/v1/chat/completions"
        with ThreadPoolExecutor(8) as pool:

            def ask_for(priority: str) -> float:
                headers = {"x-penstock-priority": priority}
                assert httpx.post(url, json=body(stream=False), headers=headers, timeout=60).status_code == 200
                return time.monotonic()

            batch = [pool.submit(ask_for, "batch") for _ in range(6)]
            eventually("six wait", lambda: stack.redis.llen("rq:queue:scripted") == 6)
            urgent = pool.submit(ask_for, "interactive")
            eventually("seven wait", lambda: stack.redis.llen("rq:queue:scripted") == 7)
            stack.add_worker("scripted")

            assert urgent.result() < min(each.result() for each in batch)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-penstock-priority", "urgent"),
        ("x-penstock-queue-deadline-s", "soon"),
        ("x-penstock-run-deadline-s", "0"),
        ("x-penstock-grace-s", "-1"),
        ("x-penstock-event-ids", "yes"),
        ("Idempotency-Key", "k" * 256),
        ("Last-Event-ID", "x"),
    ],
)
def test_a_bad_header_is_named(stack: Stack, undisturbed: Frames, header: str, value: str) -> None:
    if header == "Last-Event-ID":
        answer = httpx.get(f"{stack.base}/v1/jobs/{undisturbed.job_id}/events", headers={header: value})
    else:
        answer = httpx.post(f"{stack.base}/v1/chat/completions", json=body(), headers={header: value})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == header


def test_a_job_that_could_not_start_in_time_is_refused_at_once(stack: Stack) -> None:
    stack.redis.hset(
        "penstock:rate:scripted", mapping={"last_ms": int(time.time() * 1000), "gap_ms": 1000, "tokens": 10}
    )
    httpx.post(f"{stack.base}/admin/models/scripted/pause", headers=ADMIN)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.post, f"{stack.base}/v1/chat/completions", json=body(stream=False), timeout=30)
        eventually("one waits", lambda: stack.redis.llen("rq:queue:scripted") == 1)

        refused = httpx.post(
            f"{stack.base}/v1/chat/completions", json=body(), headers={"x-penstock-queue-deadline-s": "2"}
        )

        httpx.post(f"{stack.base}/admin/models/scripted/resume", headers=ADMIN)
        assert waiting.result().status_code == 200
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["code"] == refused.headers["x-penstock-dropped-reason"] == "deadline_unreachable"
    assert error["position"] == 2
    assert error["estimated_wait_s"] > 2
    assert 1 <= int(refused.headers["retry-after"]) <= 120


def test_the_operators_api_lists_shows_replays_and_needs_its_key(stack: Stack) -> None:
    failed = httpx.post(f"{stack.base}/v1/chat/completions", json=body("fault:raise@2", stream=False), timeout=30)
    assert failed.status_code == 500
    assert httpx.get(f"{stack.base}/admin/jobs").status_code == 401

    with httpx.Client(base_url=stack.base, headers=ADMIN, timeout=30) as operator:
        listed = operator.get("/admin/jobs", params={"state": "failed"}).json()["data"][0]
        shown = operator.get(f"/admin/jobs/{listed['id']}").json()
        wanted = {"model": "scripted", "since_s": 60, "error": "asked for this fault", "tenant": "anonymous"}
        unknown = operator.post(f"/admin/jobs/{listed['id']}/replay", params={"to_model": "gone"})
        would = operator.post("/admin/replay", json=wanted | {"dry_run": True}).json()["data"]
        (replayed,) = operator.post("/admin/replay", json=wanted).json()["data"]
        again = operator.post(f"/admin/jobs/{listed['id']}/replay").json()

    assert "EngineError" in shown["traceback"]
    assert [moment["what"].split()[0] for moment in shown["timeline"]] == ["queued", "claimed", "failed"]
    assert unknown.status_code == 404
    assert (unknown.json()["error"]["code"], unknown.json()["error"]["param"]) == ("model_not_found", "to_model")
    assert would == [{"job": listed["id"]}]
    assert replayed["replayed_as"] == again["replayed_as"]
    found = httpx.get(f"{stack.base}/v1/jobs/{replayed['replayed_as']}").json()
    assert found["replay_of"] == listed["id"]


def test_a_kept_job_is_run_again_by_the_operator_and_compared(stack: Stack) -> None:
    with httpx.Client(base_url=stack.base, headers=ADMIN, timeout=30) as operator:

        def failed() -> set[str]:
            found = operator.get("/admin/jobs", params={"state": "failed"}).json()["data"]
            return {each["id"] for each in found}

        others = failed()
        httpx.post(f"{stack.base}/v1/chat/completions", json=body("fault:raise@3", stream=False), timeout=30)
        (job_id,) = failed() - others
        rerun = operator.post(f"/admin/jobs/{job_id}/rerun", json={"max_tokens": 2, "temperature": 0.5}).json()
        eventually("run", lambda: operator.get(f"/admin/jobs/{rerun['rerun_as']}").json()["status"] == "finished")
        compared = operator.get(f"/admin/jobs/{job_id}/compare", params={"with": rerun["rerun_as"]}).json()
        many = operator.post("/admin/rerun", json={"jobs": [job_id, "nosuch"], "to_model": "gone"})
        none = operator.post("/admin/rerun", json={"max_tokens": 2})

    before, after = compared["jobs"]
    assert (before["status"], after["status"], after["finish_reasons"]) == ("failed", "finished", ["length"])
    assert (before["completion_tokens"], after["completion_tokens"]) == (3, 2)
    assert not compared["same"]
    assert many.status_code == 404
    assert many.json()["error"]["param"] == "to_model"
    assert none.status_code == 400
