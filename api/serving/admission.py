"""Admits jobs: the one module that decides which may enter a queue, in which class, and with which deadlines."""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from api.formats.common import SERVICE_TIERS
from api.http.request_options import RequestOptions, weights
from api.schemas.sampling import GenerationRequest
from api.serving.model_router import ModelRouter
from api.serving.passing_on import passed_on
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job, Kind, ModelInfo, Priority, Sampling
from shared.domain.suitability import require_fit, require_media
from shared.settings import Settings

# The tiers `auto` and `default` ask for no class: the key or the setting decides.
TIERS = {tier: priority for priority, tier in SERVICE_TIERS.items() if tier != "default"}
NO_SAMPLING = Sampling(seed=0)  # of a job that generates nothing


class Admission:
    def __init__(self, model_router: ModelRouter, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._model_router = model_router
        self._settings = settings
        self._clock = clock
        self._weights = weights(settings)

    async def job(
        self,
        prefix: str,
        model: str,
        kind: Kind,
        options: RequestOptions,
        *,
        request: dict[str, Any],
        sampling: Sampling = NO_SAMPLING,
        tier: str | None = None,
        user: str | None = None,
        cache_salt: str = "",
        body: GenerationRequest | None = None,
    ) -> Job:
        """Build the job of a request, without enqueuing it. Its id begins with `prefix`; `request` is what its worker
        computes, beside what of `body` is for the model's own server. `model` may be a name that stands for models: the
        job is for the first of them that can serve it. Raises NotFound, Forbidden, InvalidRequest or
        ContextLengthExceeded."""
        settings = self._settings
        priority, now_s = self.priority(options, tier), self._clock()
        queue_deadline_s = options.queue_deadline_s or settings.queue_deadline(priority)
        if options.due_s:
            queue_deadline_s = min(queue_deadline_s, max(options.due_s - max(now_s, options.not_before_s or 0), 0.001))
        job = Job(
            id=f"{prefix}-{secrets.token_hex(16)}",
            model=model,
            kind=kind,
            created_ms=int(now_s * 1000),
            queue_deadline_ms=int(1000 * queue_deadline_s),
            run_deadline_ms=int(1000 * (options.run_deadline_s or settings.run_deadline(priority))),
            priority=priority,
            tenant=options.caller.tenant,
            weight=options.caller.key.weight if options.caller.key else self._weights.get(options.caller.tenant, 1.0),
            grace_ms=self._grace_ms(options),
            request=request,
            sampling=sampling,
            user=user,
            cache_salt=cache_salt,
            not_before_ms=int(1000 * (options.not_before_s or 0)),
            due_ms=int(1000 * (options.due_s or 0)),
        )
        suited = await self._model_router.models_for(
            model, options.caller, priority=priority, idempotency=options.idempotency
        )
        return _for_the_first(suited, job, body)

    def salt(self, asked: str | None, options: RequestOptions) -> str:
        """Return the job's cache salt. Tenants do not share the prefix cache: the number of cached tokens, and how soon
        an answer begins, would reveal one tenant's prompts to another. Tenant names contain no slash."""
        return asked or "" if self._settings.prefix_cache_shared else f"{options.caller.tenant}/{asked or ''}"

    def priority(self, options: RequestOptions, tier: str | None) -> Priority:
        """Return the requested class, but none above the key's own."""
        asked = options.priority or TIERS.get(tier or "")
        if (key := options.caller.key) is None:
            return asked or Priority(self._settings.default_priority)
        return max(asked or key.priority, key.priority, key=lambda priority: priority.rank)

    def _grace_ms(self, options: RequestOptions) -> int | None:
        """Return how long the job outlives its readers: a client that may retry gets time to do so."""
        usual = self._settings.idempotent_grace_s if options.idempotency else self._settings.grace_s
        seconds = usual if options.grace_s is None else options.grace_s
        return None if math.isinf(seconds) else int(seconds * 1000)


def _for_the_first(models: Sequence[ModelInfo], job: Job, body: GenerationRequest | None) -> Job:
    """Return the job for the first of the models that can serve it. Raises what the first one lacks if none can."""
    refusals = []
    for model in models:
        try:
            return _for_model(model, job, body)
        except InvalidRequest as error:
            refusals.append(error)
    raise refusals[0]


def _for_model(model: ModelInfo, job: Job, body: GenerationRequest | None) -> Job:
    require_media(job.request, model)
    extra = passed_on(body, model) if body else {}
    job = replace(job, model=model.name, request=job.request | ({"extra": extra} if extra else {}))
    require_fit(job, model)
    return job
