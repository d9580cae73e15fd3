"""What chat and text completions share."""

from typing import Any

from shared.events import Usage
from shared.job import Job

FINGERPRINT = "penstock-1"


def head(job: Job, kind: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created_ms // 1000,
        "model": job.model,
        "system_fingerprint": FINGERPRINT,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
