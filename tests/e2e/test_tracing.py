"""A collector of OpenTelemetry traces gets the spans of a job."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.harness import Stack, eventually, standalone_stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SECRET = "heliotrope"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": SECRET}], "stream": True, "max_tokens": 200}


class Collector:
    """Collects every span that is sent by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.raw = b""

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [self._read(span, about["service.name"]) for span in scope.spans]

    @staticmethod
    def _read(span: Any, service: str) -> dict[str, Any]:
        return {
            "service": service,
            "name": span.name,
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "begin": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            **_attributes(span.attributes),
        }

    def named(self, name: str) -> list[dict[str, Any]]:
        return sorted((span for span in self.spans if span["name"] == name), key=lambda span: span["begin"])


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_trace_tells_a_job_from_its_request_to_its_end_across_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collecting() as (collector, endpoint):
        options: dict[str, Any] = {"otlp_endpoint": endpoint, "scripted_step_ms": 20}
        with standalone_stack(tmp_path, "scripted", **options) as stack:
            tokens = _ask_and_kill(stack, collector)
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))

    (request,), (sent,) = collector.named("POST /v1/chat/completions"), collector.named("send scripted")
    (wait,), (done,) = collector.named("wait"), collector.named("process scripted")
    prefill, decode = collector.named("prefill"), collector.named("decode")
    assert {span["trace"] for span in collector.spans} == {TRACE}
    assert (request["parent"], sent["parent"]) == (CALLER, request["id"])
    assert wait["parent"] == done["parent"] == sent["id"]
    assert [span["parent"] for span in (prefill[-1], decode[-1])] == [done["id"]] * 2
    assert {request["service"], done["service"]} == {"penstock-api", "penstock-worker"}
    assert (done["penstock.attempt"], done["penstock.outcome"]) == (2, "completed")
    assert done["gen_ai.usage.output_tokens"] == tokens
    assert done["penstock.events_before"] > 0
    assert wait["begin"] <= prefill[0]["begin"] <= decode[-1]["begin"] < decode[-1]["end"] <= request["end"]
    assert len(prefill) == 2, "the killed worker's prefill had been sent"
    assert sum(json.loads(line).get("trace_id") == TRACE for line in logs.splitlines() if line.startswith("{")) >= 2
    assert SECRET.encode() not in collector.raw
    assert SECRET not in logs


def _ask_and_kill(stack: Stack, collector: Collector) -> int:
    """Stream an answer and kill its first worker after its first spans; return the tokens."""
    stack.add_worker("scripted")
    stack.wait_ready(2)
    completions: Any = stack.client().chat.completions
    stream = completions.create(**ASK, extra_headers=CONTEXT, stream_options={"include_usage": True})
    chunks = iter(stream)
    next(chunks)
    eventually("the prefill is told", lambda: collector.named("prefill"))
    busy = eventually("it runs", lambda: next(filter(stack.worker_running, stack.workers), None))
    busy.kill()
    *_, last = chunks
    return int(last.usage.completion_tokens)


def test_without_an_endpoint_nothing_is_traced_and_logs_name_requests_and_jobs(tmp_path: Path) -> None:
    with standalone_stack(tmp_path, "scripted") as stack:
        answer = stack.post(ASK | {"stream": False, "max_tokens": 2}, headers=CONTEXT)
        stack.stop()
        (api,) = tmp_path.glob("api-*.log")
        lines = [json.loads(line) for line in api.read_text().splitlines() if line.startswith("{")]

    (line,) = [line for line in lines if line["message"] == "answered" and line["path"] == "/v1/chat/completions"]
    assert (line["method"], line["status"], line["request_id"]) == ("POST", 200, answer.headers["x-request-id"])
    assert line["job_id"] == answer.json()["id"]
    assert "trace_id" not in line
