"""Traces: the context goes on to the engine; spans go to a collector, and wait for nobody."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hostler.app.config import HttpLimits, TelemetryConfig
from hostler.core.errors import ConfigError
from hostler.core.snapshot import Endpoint
from hostler.gateway.spans import check_telemetry, traces_url
from hostler.wire.server import Exchange, HttpServer
from tests.integration.gateway.rig import Rig, rig, until
from tests.unit.routing.fleet import instance, model

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
CHAT = {"model": "m", "messages": [{"role": "user", "content": "do-not-show-this"}]}


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.spans: list[Any] = []
        self.bodies: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Taker(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(body)
        self.server.bodies.append(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.shutdown()
    made.server_close()


@contextlib.asynccontextmanager
async def engine(ours: Rig, seen: list[dict[bytes, bytes]]) -> Any:
    """An engine that notes the headers it gets."""

    def answer(exchange: Exchange) -> None:
        seen.append(dict(exchange.request.fields))
        exchange.send(200, ANSWER, [(b"content-type", b"application/json")])

    server = HttpServer(answer, limits=HttpLimits())
    path = ours.folder / "engine.sock"
    await server.listen_unix(path)
    ours.source.publish([model("m")], [instance("i1", "m", endpoint=Endpoint(socket=str(path)))])
    try:
        yield
    finally:
        await server.close(0.0)


def test_the_trace_of_a_client_goes_on_to_the_engine_when_it_is_well_formed() -> None:
    async def main() -> None:
        seen: list[dict[bytes, bytes]] = []
        async with rig() as ours, engine(ours, seen):
            for parent, state in (
                (PARENT, b"a=1,b=2"),
                (PARENT, b""),
                (PARENT, b"a=" + b"x" * 600),
                (PARENT.upper(), b"a=1"),
                (PARENT.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32), b"a=1"),
                (b"ff" + PARENT[2:], b"a=1"),
                (b"x", b"a=1"),
            ):
                headers = [(b"traceparent", parent)]
                headers += [(b"tracestate", state)] if state else []
                assert (
                    await ours.post("/v1/chat/completions", CHAT, headers=headers)
                ).status == 200
            await ours.post("/v1/chat/completions", CHAT)
        passed = [(one.get(b"traceparent"), one.get(b"tracestate")) for one in seen]
        assert passed == [(PARENT, b"a=1,b=2"), (PARENT, None), (PARENT, None), *[(None, None)] * 5]

    asyncio.run(main())


def test_each_request_is_a_span_with_its_attempts_and_tokens(collector: Collector) -> None:
    async def main() -> None:
        seen: list[dict[bytes, bytes]] = []
        telemetry = TelemetryConfig(otlp_endpoint=collector.url)
        async with rig(telemetry=telemetry) as ours, engine(ours, seen):
            for parent in (PARENT, PARENT[:-1] + b"0", b""):
                headers = [(b"traceparent", parent)] if parent else []
                await ours.post("/v1/chat/completions", CHAT, headers=headers)
            spans = ours.gateway.relays.spans
            assert spans is not None
            await until(lambda: spans.exported >= 2, 10)  # counted once the collector has answered
            assert (spans.exported, spans.dropped, len(collector.spans)) == (2, 0, 2)
            assert b"hostler_spans_exported_total 2.0" in ours.gateway.metrics.text()
        below, root = collector.spans  # the one in between was not to be sampled
        assert (below.trace_id.hex(), below.parent_span_id.hex()) == (TRACE, SPAN)
        assert root.parent_span_id == b""
        assert seen[0][b"traceparent"].decode().split("-")[1:3] == [TRACE, below.span_id.hex()]
        assert seen[2][b"traceparent"].decode().split("-")[2] == root.span_id.hex()
        told = {one.key: one.value.string_value or one.value.int_value for one in below.attributes}
        assert below.name == "chat m"
        assert told["gen_ai.request.model"] == "m"
        assert told["hostler.outcome"] == "ok"
        assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 2)
        assert [event.name for event in below.events] == ["attempt"]
        assert 0 < below.end_time_unix_nano - below.start_time_unix_nano < 10e9
        assert b"do-not-show-this" not in b"".join(collector.bodies)

    asyncio.run(main())


def test_F86_a_collector_that_hangs_costs_nobody_anything_and_spans_are_dropped() -> None:
    async def main() -> None:
        deaf = socket.create_server(("127.0.0.1", 0))  # it takes connections and says nothing
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        telemetry = TelemetryConfig(otlp_endpoint=url, queue_spans=20, timeout_s=1.0)
        async with rig(telemetry=telemetry) as ours, engine(ours, []):
            spans = ours.gateway.relays.spans
            assert spans is not None
            began_s = time.monotonic()
            while not spans.dropped and time.monotonic() - began_s < 20:
                asked_s = time.monotonic()
                assert (await ours.post("/v1/chat/completions", CHAT)).status == 200
                assert time.monotonic() - asked_s < 2
            assert spans.dropped
            assert len(spans._queue) <= 20
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 8  # the gateway ends in time
        deaf.close()

    asyncio.run(main())


def test_an_endpoint_that_is_none_and_a_missing_extra_are_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="is not a URL like"):
        check_telemetry(TelemetryConfig(otlp_endpoint="collector:4318"))
    check_telemetry(TelemetryConfig(otlp_endpoint="http://127.0.0.1:4318"))
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'hostler\[otel\]'"):
        check_telemetry(TelemetryConfig(otlp_endpoint="http://127.0.0.1:4318"))
    check_telemetry(TelemetryConfig())


def test_a_collector_is_named_with_or_without_its_path() -> None:
    assert traces_url("http://c:4318/") == traces_url("http://c:4318/v1/traces")
