"""A failed job of one engine is replayed by a model of another engine, by the command and by the API."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.e2e.harness import standalone_stack

ADMIN = {"authorization": "Bearer secret"}
CHUNKS = openai.Stream[ChatCompletionChunk]
MESSAGES = [{"role": "user", "content": "fault:raise@2"}]


def test_another_engine_answers_what_one_has_failed(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "scripted", "builtin", admin_key="secret") as stack:
        client = stack.client()
        ask = partial(client.chat.completions.create, messages=MESSAGES, max_tokens=8, temperature=0)
        for _ in range(2):
            with pytest.raises(openai.APIError):
                ask(model="scripted")
        expected = ask(model="penstock-tiny").choices[0].message.content

        with httpx.Client(base_url=stack.base, headers=ADMIN, timeout=30) as operator:
            by_command, by_api = (each["id"] for each in operator.get("/admin/jobs?state=failed").json()["data"])
            command = [sys.executable, "-m", "cli", "jobs", "--redis-url", stack.server.url, "replay", by_command]
            done = subprocess.run([*command, "--to-model", "penstock-tiny"], capture_output=True, text=True, check=True)
            replayed = operator.post(f"/admin/jobs/{by_api}/replay", params={"to_model": "penstock-tiny"}).json()
            again = [operator.get(f"/admin/jobs/{by_command}").json()["replayed_as"], replayed["replayed_as"]]

            assert "1 job replayed" in done.stdout
            for job_id in again:
                assert answer_of(client, job_id) == ("penstock-tiny", expected)
                job = operator.get(f"/admin/jobs/{job_id}").json()
                assert (job["status"], job["model"]) == ("finished", "penstock-tiny")


def answer_of(client: openai.OpenAI, job_id: str) -> tuple[str, str]:
    """The model and the text of a job's stream, read to its end."""
    stream = client.get(f"jobs/{job_id}/events", cast_to=ChatCompletionChunk, stream=True, stream_cls=CHUNKS)
    chunks = list(stream)
    return chunks[0].model, "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
