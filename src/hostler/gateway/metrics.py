"""What the gateway counts, and how Prometheus reads it.

Plain dictionaries on the hot path; metric families are made when somebody scrapes. Labels are
bounded: models that are not ours count as `other`.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hostler.app.telemetry import dropped_log_lines
from hostler.core.timeline import FlightEnd
from hostler.gateway.spans import Spans
from hostler.gateway.timeline import Timeline
from hostler.wire.server import HttpServer

OTHER = "other"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GAP_BUCKETS_S = (0.001, 0.0025, *BUCKETS_S[:10])
MODELS = 500  # told apart; later ones count as `other`
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

K = TypeVar("K", bound=Hashable)
F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)


class Spread:
    """A histogram of seconds."""

    __slots__ = ("bounds_s", "counts", "total_s")

    def __init__(self, bounds_s: Sequence[float] = BUCKETS_S) -> None:
        self.bounds_s = list(bounds_s)
        self.counts = [0] * (len(bounds_s) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        place = 0
        for bound_s in self.bounds_s:  # compiled, a few steps are less than a call
            if seconds <= bound_s:
                break
            place += 1
        self.counts[place] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        bounds = [*(f"{bound:g}" for bound in self.bounds_s), "+Inf"]
        total, found = 0, []
        for bound, count in zip(bounds, self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class ModelCounts:
    """What is counted of one model."""

    __slots__ = (
        "cached",
        "completion",
        "durations",
        "estimated",
        "first_bytes",
        "gaps",
        "prompt",
        "waits",
    )

    def __init__(self) -> None:
        self.prompt = self.cached = self.completion = self.estimated = 0
        self.durations, self.first_bytes, self.waits = Spread(), Spread(), Spread()
        self.gaps = Spread(GAP_BUCKETS_S)


class GatewayMetrics:
    """Counters of one gateway process, since its start.

    A Collector of prometheus-client by its methods: compiled code finds its own attributes faster.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}  # model, route, status
        self.failures: dict[tuple[str, str], int] = {}  # model, kind of failed attempt
        self.retries: dict[str, int] = {}
        self.fallbacks: dict[tuple[str, str], int] = {}  # model that was asked, cause
        self.flights: dict[tuple[str, FlightEnd], int] = {}  # model, how a wait ended
        self.loans: dict[tuple[str, str], int] = {}  # model, what became of one
        self.refusals: dict[str, int] = {}  # code
        self.models: dict[str, ModelCounts] = {}
        self.gauges: Callable[[], Iterable[tuple[str, str, Mapping[str, float]]]] = tuple
        self.servers: Sequence[HttpServer] = ()  # those this gateway answers through
        self.number = 1
        self.spans: Spans | None = None
        self._registry = CollectorRegistry()
        self._registry.register(cast(Collector, self))

    def finished(self, timeline: Timeline) -> None:
        """A request that reached a model's queue or instance has ended. status 499: client gone."""
        model = timeline.model
        counts = self.models.get(model)
        if counts is None:
            model, counts = self._new_model(model)
        key = (model, timeline.route, timeline.status)
        self.requests[key] = self.requests.get(key, 0) + 1
        counts.durations.add(timeline.took_s or 0.0)
        if timeline.first_byte_s is not None:
            counts.first_bytes.add(timeline.first_byte_s)
            if (gap_s := timeline.gap_s) is not None:
                counts.gaps.add(gap_s)
        if timeline.waited_s is not None:
            counts.waits.add(timeline.waited_s)
        used = timeline.used
        if used is not None:
            counts.prompt += used.prompt
            counts.cached += used.cached
            counts.completion += used.completion
            counts.estimated += used.is_estimated

    def attempt_failed(self, model: str, kind: str) -> None:
        self.failures[model, kind] = self.failures.get((model, kind), 0) + 1

    def retried(self, model: str) -> None:
        self.retries[model] = self.retries.get(model, 0) + 1

    def fell_back(self, model: str, cause: str) -> None:
        """A request goes on to another model than the one asked."""
        self.fallbacks[model, cause] = self.fallbacks.get((model, cause), 0) + 1

    def flown(self, model: str, end: FlightEnd) -> None:
        """A request has waited for another one to read what both begin with."""
        self.flights[model, end] = self.flights.get((model, end), 0) + 1

    def lent(self, model: str, result: str) -> None:
        """A prompt was to be lent from slot to slot. result: lent, no_slot, refused, failed, in_vain."""
        self.loans[model, result] = self.loans.get((model, result), 0) + 1

    def refused(self, code: str) -> None:
        """A request was refused before it reached a model."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        which = GaugeMetricFamily(
            "hostler_gateway", "1, with the number of the gateway that tells.", labels=["number"]
        )
        yield _filled(which, {self.number: 1.0})
        by_status = ("model", "route", "status")
        yield _counter("hostler_requests", "Requests by status.", by_status, self.requests)
        yield _counter(
            "hostler_attempt_failures", "Failed attempts by kind.", ("model", "kind"), self.failures
        )
        yield _counter(
            "hostler_fallbacks",
            "Requests sent on to another model, by the one asked.",
            ("model", "cause"),
            self.fallbacks,
        )
        yield _counter(
            "hostler_flight_waits",
            "Requests that waited for another one to read what both begin with, by how that ended.",
            ("model", "end"),
            self.flights,
        )
        yield _counter(
            "hostler_prefix_loans",
            "Prompts that were read once and lent to other slots, by result; in_vain: read again there.",
            ("model", "result"),
            self.loans,
        )
        yield _counter("hostler_retries", "Attempts after the first.", ("model",), self.retries)
        yield _counter(
            "hostler_refusals", "Requests refused before any model.", ("code",), self.refusals
        )
        yield from self._of_models()
        yield from self._connections()
        yield CounterMetricFamily(
            "hostler_log_lines_dropped",
            "Log lines that nobody took.",
            value=dropped_log_lines(),
        )
        spans = self.spans
        for name, help_text, count in (
            ("exported", "Spans that a collector took.", spans.exported if spans else 0),
            ("dropped", "Spans that no collector took.", spans.dropped if spans else 0),
        ):
            yield CounterMetricFamily(f"hostler_spans_{name}", help_text, value=count)
        for name, help_text, values in self.gauges():
            yield _filled(GaugeMetricFamily(name, help_text, labels=["model"]), values)

    def _of_models(self) -> Iterable[Metric]:
        models = self.models
        yield _counter(
            "hostler_tokens",
            "Tokens by kind; cached ones are among the prompt's.",
            ("model", "kind"),
            {
                (model, kind): count
                for model, counts in models.items()
                for kind, count in (
                    ("prompt", counts.prompt),
                    ("cached", counts.cached),
                    ("completion", counts.completion),
                )
            },
        )
        yield _counter(
            "hostler_estimated_requests",
            "Requests whose tokens no engine told: what was delivered is counted.",
            ("model",),
            {model: counts.estimated for model, counts in models.items()},
        )
        for name, help_text, spreads in (
            (
                "request",
                "From request to last byte.",
                [(m, c.durations) for m, c in models.items()],
            ),
            (
                "first_byte",
                "To the first byte of a stream (time to first token), or of a long answer.",
                [(m, c.first_bytes) for m, c in models.items()],
            ),
            (
                "inter_token",
                "Between two pieces of a stream: the mean of each stream.",
                [(m, c.gaps) for m, c in models.items()],
            ),
            (
                "queue",
                "For a slot, of requests that had to wait.",
                [(m, c.waits) for m, c in models.items()],
            ),
        ):
            yield _histogram(f"hostler_{name}_seconds", help_text, dict(spreads))

    def _new_model(self, model: str) -> tuple[str, ModelCounts]:
        if len(self.models) >= MODELS:
            model = OTHER
        return model, self.models.setdefault(model, ModelCounts())

    def _connections(self) -> Iterable[Metric]:
        open_ = sum(len(server.crowd) for server in self.servers)
        evicted = sum(server.crowd.evicted for server in self.servers)
        refused = sum(server.crowd.turned_away for server in self.servers)
        stops = sum(server.shut_count for server in self.servers)
        yield GaugeMetricFamily("hostler_connections", "Open connections of clients.", value=open_)
        for name, text, value in (
            ("evicted", "Closed while idle, for new ones.", evicted),
            ("refused", "Answered 503 at once: too many, and none idle.", refused),
        ):
            yield CounterMetricFamily(f"hostler_connections_{name}", text, value=value)
        yield CounterMetricFamily(
            "hostler_accept_stops",
            "How often connections were left waiting for want of files.",
            value=stops,
        )

    def describe(self) -> Iterable[Metric]:
        return ()


# Private


def _counter(name: str, help_text: str, labels: Sequence[str], values: Mapping[K, float]) -> Metric:
    return _filled(CounterMetricFamily(name, help_text, labels=labels), values)


def _filled(family: F, values: Mapping[K, float]) -> F:
    """values: by label, or by a tuple of them when there are several."""
    for key, value in values.items():
        labels = key if isinstance(key, tuple) else (key,)
        family.add_metric([str(label) for label in labels], value)
    return family


def _histogram(name: str, help_text: str, values: Mapping[str, Spread]) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=["model"])
    for model, spread in values.items():
        family.add_metric([model], spread.buckets(), spread.total_s)
    return family
