"""Jobs wait for their time through the restart of everything, and batches wait for their window."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.e2e.frames import pick_up, post
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.e2e.test_batches import chat, ended, start
from tests.e2e.test_faults import ask

BODY = {"model": "scripted", "messages": ask("later"), "max_tokens": 20, "stream": True, "temperature": 0}
DELAY = "4s"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    opens = datetime.now(UTC) + timedelta(hours=2)
    window = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    with standalone_stack(tmp_path_factory.mktemp("schedule"), "scripted", batch_window=window) as running:
        yield running


def test_a_batch_waits_for_its_window_and_can_be_cancelled_before(stack: Stack) -> None:
    client = stack.client()
    batch = start(client, [chat(1)])
    eventually("it is begun", lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert post(stack.base, BODY).done

    assert stack.redis.keys(f"rq:job:{batch.id}*") == []
    client.batches.cancel(batch.id)
    assert ended(client, batch.id).status == "cancelled"


def test_a_deadline_that_has_passed_is_refused_by_name(stack: Stack) -> None:
    headers = {"x-penstock-deadline": "2001-01-01T00:00:00Z"}

    refused = httpx.post(f"{stack.base}/v1/chat/completions", json=BODY, headers=headers)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "x-penstock-deadline"


def test_a_delayed_job_survives_the_death_of_redis_worker_and_api(stack: Stack) -> None:
    expected = post(stack.base, BODY).text
    headers = {"x-penstock-not-before": DELAY, "x-penstock-grace-s": "forever"}
    _, other = stack.start_api()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, stack.base, BODY, headers)
        (waits,) = eventually("scheduled", lambda: stack.redis.zrange("rq:scheduled:scripted", 0, -1))
        shown = httpx.get(f"{other}/v1/jobs/{waits.decode()}").json()
        assert stack.api
        stack.api.kill()
        with suppress(httpx.TransportError):
            waiting.result(30)
    stack.workers.pop().kill()
    stack.restart_redis(down_s=0.2)
    stack.add_worker("scripted")

    picked_up = pick_up(other, waits.decode())

    assert shown["status"] == "scheduled"
    assert shown["not_before"] > shown["created"]
    assert picked_up.done
    assert picked_up.text == expected
