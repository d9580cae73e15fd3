"""OpenTelemetry: one trace for each job, from the client's request through the queue to the engine and back.

The queue carries the W3C trace context with the job, so that whoever takes the job over goes on with its trace. Without
PENSTOCK_OTLP_ENDPOINT nothing is recorded, and a context that a client sends is not taken up. No prompt and no answer
goes into a span.
"""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.domain.errors import SettingsError
from shared.settings import Settings

TRACER = trace.get_tracer("penstock")
_PROPAGATOR = TraceContextTextMapPropagator()


def start_tracing(settings: Settings, *, service: str) -> None:
    """Send spans to the collector of the settings, if any; OTEL_* variables of the SDK say the rest. Raises
    SettingsError when the packages for it are not installed."""
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
    """32 hexadecimal digits; empty outside of a recorded trace."""
    found = trace.get_current_span(context).get_span_context()
    return format(found.trace_id, "032x") if found.is_valid else ""


def to_carry() -> str:
    """The current span as a W3C `traceparent`; empty outside of a recorded trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def carried(traceparent: str) -> Context:
    """The span that the context came from, as a parent."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())
