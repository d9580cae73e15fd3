"""The trace of one attempt at a job: the wait before it, what was read and written, and how it ended."""

import time
from collections.abc import Sequence

from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from shared.domain.events import Completed, Delta, Event, Failed, Finished
from shared.observability.tracing import TRACER, carried, trace_id
from shared.queue.protocols import Delivery

SYSTEM = "penstock"


class AttemptTrace:
    """Spans under the job's trace. An attempt whose worker dies leaves the spans that it had sent. The next attempt is
    their sibling, since the context comes with the job."""

    def __init__(self, delivery: Delivery, *, worker: str) -> None:
        job, now = delivery.job, time.time_ns()
        parent = carried(delivery.trace)
        about: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.destination.name": job.model,
            "messaging.message.id": job.id,
            "gen_ai.request.model": job.model,
            "gen_ai.operation.name": job.kind,
            "penstock.worker": worker,
            "penstock.attempt": delivery.attempt,
            "penstock.priority": job.priority,
            "penstock.events_before": len(delivery.log),
        }
        waited_since = now - int(delivery.waited_ms * 1e6)
        if not delivery.log and delivery.attempt == 1:
            TRACER.start_span("wait", parent, start_time=waited_since).end(now)
        self._span = TRACER.start_span(f"process {job.model}", parent, kind=SpanKind.CONSUMER, attributes=about)
        self._context = set_span_in_context(self._span, parent)
        self._phase: Span | None = TRACER.start_span("prefill", self._context)
        self._reading = True
        self.trace_id = trace_id(self._context)

    def wrote(self, events: Sequence[Event]) -> None:
        if self._reading and any(isinstance(event, Delta) for event in events):
            self._reading = False
            self._enter("decode")
        if isinstance(events[-1], Finished):
            self._enter(None)

    def ended(self, outcome: str, last: Event | None = None) -> None:
        """Close the spans. `outcome` is named like in the metrics; `last` is the event that ended the attempt, if it
        ended here."""
        self._enter(None)
        self._span.set_attribute("penstock.outcome", outcome)
        match last:
            case Finished(outcome=Completed(usage=usage)):
                self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
                self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
                self._span.set_attribute("penstock.cached_tokens", usage.cached_tokens)
            case Finished(outcome=Failed(code=code)):
                self._span.set_attribute("error.type", code)
                self._span.set_status(StatusCode.ERROR, code)
        self._span.end()

    def _enter(self, phase: str | None) -> None:
        if self._phase:
            self._phase.end()
        self._phase = TRACER.start_span(phase, self._context) if phase else None
