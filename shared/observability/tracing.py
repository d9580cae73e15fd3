"""OpenTelemetry: one trace for each job, from the client's request through the queue to the engine and back.

The queue carries the W3C trace context with the job, so a worker that takes the job over continues its trace. Without
PENSTOCK_OTLP_ENDPOINT nothing is recorded, and a client's trace context is ignored. No span holds a prompt or answer.
"""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.domain.errors import SettingsError
from shared.settings import Settings

TRACER = trace.get_tracer("penstock")
_PROPAGATOR = TraceContextTextMapPropagator()


def start_tracing(settings: Settings, *, service: str) -> None:
    """Send spans to the collector of the settings, if any; the SDK's OTEL_* variables configure the rest. Raises
    SettingsError when the OpenTelemetry packages are not installed."""
    if not settings.otlp_endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(f"PENSTOCK_OTLP_ENDPOINT needs the extra 'otel': {error}") from error
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces")
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def trace_id(context: Context | None = None) -> str:
    """Return the trace id as 32 hexadecimal digits; empty outside a recorded trace."""
    found = trace.get_current_span(context).get_span_context()
    return format(found.trace_id, "032x") if found.is_valid else ""


def to_carry() -> str:
    """Return the current span as a W3C `traceparent`; empty outside a recorded trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def carried(traceparent: str) -> Context:
    """Return a context whose parent is the span that the `traceparent` names."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())
