"""Spans: one for each request, sent to an OpenTelemetry collector in the background (F86).

Needs the extra `hostler[otel]`. A request costs an entry in a queue; a thread makes spans of what is there
and sends them. The queue is bounded: when the collector is slow or gone, spans are dropped and counted, and
nobody waits.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hostler.app.config import TelemetryConfig
from hostler.app.telemetry import logger
from hostler.app.version import installed_version
from hostler.core.errors import ConfigError
from hostler.core.timeline import RequestOutcome
from hostler.gateway.timeline import Timeline
from hostler.gateway.trace import Trace, span_of

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logger(__name__)

BATCH = 256
EVERY_S = 1.0
FAREWELL_S = 2.0  # for the last spans of a gateway that stops
_TRACES = "/v1/traces"
_FAULTS = frozenset(RequestOutcome) - {RequestOutcome.OK, RequestOutcome.CLIENT_GONE}


class Spans:
    """The spans of one gateway. exported, dropped: how many so far."""

    def __init__(self, config: TelemetryConfig) -> None:
        """Open nothing yet.

        Raises:
            ConfigError: no collector can be spoken to: see `check_telemetry`.
        """
        check_telemetry(config)
        self._config = config
        self._queue: deque[tuple[Timeline, Trace, float]] = deque()
        self._stopping = threading.Event()
        self._is_well = True
        self.exported = 0
        self.dropped = 0

    def begin(self, fields: Mapping[bytes, bytes]) -> Trace:
        """Return the place of a new request's span."""
        return span_of(fields)

    def add(self, timeline: Timeline, trace: Trace) -> None:
        """A request has ended."""
        if not trace.is_sampled:
            return
        if len(self._queue) >= self._config.queue_spans:
            self.dropped += 1
        else:
            self._queue.append((timeline, trace, time.time()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send what comes, while the block lasts; the rest has a moment more."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # we say it ourselves, once
        exporter = OTLPSpanExporter(
            endpoint=traces_url(self._config.otlp_endpoint), timeout=self._config.timeout_s
        )
        thread = threading.Thread(
            target=self._run, args=(exporter,), name="gateway.spans", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.to_thread(thread.join, FAREWELL_S)
            await asyncio.to_thread(exporter.shutdown)  # ends a wait for another try, too

    # Private

    def _run(self, exporter: "SpanExporter") -> None:
        resource = _resource(self._config.service_name)
        while True:
            is_last = self._stopping.wait(EVERY_S)
            while batch := self._take():
                self._export(exporter, [_span(resource, *one) for one in batch])
            if is_last:
                return

    def _take(self) -> list[tuple[Timeline, Trace, float]]:
        queue = self._queue
        return [queue.popleft() for _ in range(min(BATCH, len(queue)))]

    def _export(self, exporter: "SpanExporter", spans: "Sequence[ReadableSpan]") -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            is_sent = exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # boundary: a library's, about a collector; requests go on
            log.debug("spans.raised", raised=type(error).__name__)
            is_sent = False
        if is_sent:
            self.exported += len(spans)
        else:
            self.dropped += len(spans)
        if is_sent is not self._is_well:
            self._is_well = is_sent
            where = self._config.otlp_endpoint
            if is_sent:
                log.info("spans.sent_again", endpoint=where, dropped=self.dropped)
            else:
                log.warning("spans.dropped", endpoint=where, why="the collector does not take them")


def check_telemetry(config: TelemetryConfig) -> None:
    """Return when spans are not wished, or can be sent.

    Raises:
        ConfigError: the endpoint is no URL, or the extra is not installed.
    """
    if not config.otlp_endpoint:
        return
    parts = urlsplit(config.otlp_endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"telemetry.otlp_endpoint: {config.otlp_endpoint!r} is not a URL like http://127.0.0.1:4318"
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "telemetry.otlp_endpoint is set, but OpenTelemetry is not installed: "
            "`pip install 'hostler[otel]'`, or leave the setting out"
        ) from error


def traces_url(endpoint: str) -> str:
    """The address that takes traces: of a collector, or as given."""
    return endpoint if endpoint.endswith(_TRACES) else endpoint.rstrip("/") + _TRACES


# Private


def _resource(service_name: str) -> "Resource":
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": service_name, "service.version": installed_version()})


def _span(
    resource: "Resource", timeline: Timeline, trace: Trace, ended_at_s: float
) -> "ReadableSpan":
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(span_id: bytes, *, is_remote: bool) -> SpanContext:
        flags = TraceFlags(int(trace.flags, 16))
        return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote, flags)

    began_at_s = ended_at_s - (timeline.took_s or 0.0)

    def at_ns(since_s: float) -> int:
        return int((began_at_s + since_s) * 1e9)

    events = [
        Event(
            "attempt",
            {"instance": one.instance_id, "why": one.why, "failure": one.failure},
            at_ns(one.at_s),
        )
        for one in timeline.tries
    ]
    if timeline.first_byte_s is not None:
        events.append(Event("first_byte", {}, at_ns(timeline.first_byte_s)))
    outcome = timeline.outcome
    is_fault = outcome in _FAULTS
    return ReadableSpan(
        name=f"{timeline.route} {timeline.model}",
        context=context(trace.span_id, is_remote=False),
        parent=context(trace.parent_id, is_remote=True) if trace.parent_id else None,
        resource=resource,
        attributes=_attributes(timeline),
        events=events,
        kind=SpanKind.SERVER,
        status=Status(
            StatusCode.ERROR if is_fault else StatusCode.UNSET, timeline.code if is_fault else None
        ),
        start_time=at_ns(0.0),
        end_time=at_ns(timeline.took_s or 0.0),
    )


def _attributes(timeline: Timeline) -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {
        "gen_ai.request.model": timeline.asked,
        "gen_ai.response.model": timeline.model,
        "http.response.status_code": timeline.status,
        "hostler.request_id": timeline.request_id,
        "hostler.key_id": timeline.key_id,
        "hostler.outcome": timeline.outcome.value if timeline.outcome else "",
        "hostler.attempts": len(timeline.tries),
        "hostler.stream": timeline.stream,
    }
    if timeline.waited_s is not None:
        found["hostler.waited_s"] = timeline.waited_s
    if timeline.used is not None:
        found["gen_ai.usage.input_tokens"] = timeline.used.prompt
        found["gen_ai.usage.output_tokens"] = timeline.used.completion
        found["hostler.cached_tokens"] = timeline.used.cached
        found["hostler.estimated"] = timeline.used.is_estimated
    return found
