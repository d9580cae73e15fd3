"""Creates batches as a client does, and waits for their ends."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from bench.chaos.act import Act
from bench.chaos.http import ask, call

BATCH_ENDS_S = 15.0
ENDED = ("completed", "failed", "expired", "cancelled")
BOUNDARY = "chaos"


async def create(act: Act, tenant: str, lines: Sequence[tuple[str, dict[str, Any]]]) -> tuple[str, str]:
    """Create a batch of requests (path, body), whose custom ids are their numbers. Return the ids of its file and of
    itself."""
    rows = [
        {"custom_id": f"{number}", "method": "POST", "url": path, "body": body}
        for number, (path, body) in enumerate(lines)
    ]
    base = act.rng.choice(act.site.bases())
    form = _form({"purpose": "batch"}, "\n".join(map(json.dumps, rows)))
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    _, file = await call(f"{base}/v1/files", body=form, headers=bearer(tenant) | kind)
    about = {"input_file_id": file["id"], "endpoint": lines[0][0], "completion_window": "24h"}
    _, batch = await call(f"{base}/v1/batches", body=about, headers=bearer(tenant))
    return str(file["id"]), str(batch["id"])


async def look_at(act: Act, batch_id: str, tenant: str) -> dict[str, Any]:
    url = f"{act.rng.choice(act.site.bases())}/v1/batches/{batch_id}"
    _, batch = await call(url, method="GET", headers=bearer(tenant))
    return batch


async def ended(act: Act, batch_id: str, tenant: str, *, seconds: float = BATCH_ENDS_S) -> dict[str, Any]:
    """Wait for the batch's end, so many seconds at most. Return its last state."""
    deadline = time.monotonic() + seconds
    while True:
        batch = await look_at(act, batch_id, tenant)
        if batch["status"] in ENDED or time.monotonic() > deadline:
            return batch
        await asyncio.sleep(0.2)


async def answers_of(act: Act, batch: dict[str, Any], tenant: str) -> dict[int, dict[str, Any]]:
    """Read the rows of an ended batch's output and error files, by the numbers of their lines."""
    rows = dict[int, dict[str, Any]]()
    for name in ("output_file_id", "error_file_id"):
        if file_id := batch.get(name):
            url = f"{act.rng.choice(act.site.bases())}/v1/files/{file_id}/content"
            answer = await ask(url, method="GET", headers=bearer(tenant))
            found = map(json.loads, (await answer.body()).splitlines())
            rows |= {int(row["custom_id"]): row for row in found}
            answer.close()
    return rows


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def _form(fields: dict[str, str], file: str) -> bytes:
    parts = [f'content-disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts.append(f'content-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n{file}')
    return "".join(f"--{BOUNDARY}\r\n{part}\r\n" for part in parts).encode() + f"--{BOUNDARY}--\r\n".encode()
