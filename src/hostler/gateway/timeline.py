"""Timeline: what happened to a request, and when. Never the prompt, the answer or the key.

Times are seconds since the request was whole here, but for began_s.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from hostler.core.errors import ModelLoading, NoReadyInstance, Overloaded, UpstreamTimeout
from hostler.core.timeline import FlightEnd, FlightView, RequestOutcome, RequestView, TryView
from hostler.gateway.trace import Trace
from hostler.gateway.usage import Used

EMPTY = '""'
CLIENT_GONE = 499  # a status that nobody is sent


class Try:
    """One attempt: where, why there, and what became of it ("": it goes on, or was the answer)."""

    __slots__ = ("at_s", "ended_s", "failure", "instance_id", "why")

    def __init__(self, instance_id: str, why: str, at_s: float) -> None:
        self.instance_id = instance_id
        self.why = why
        self.at_s = at_s
        self.ended_s: float | None = None  # told of those that failed
        self.failure = ""


class Flown:
    """Its part in a flight (gateway/flights.py). since_s: monotonic; None: it leads and does not wait."""

    __slots__ = ("end", "followers", "led_by", "since_s", "waited_s")

    def __init__(self, led_by: str, since_s: float | None) -> None:
        self.led_by = led_by
        self.since_s = since_s
        self.followers = 0
        self.waited_s: float | None = None
        self.end: FlightEnd | None = None


class Timeline:
    """One request. The relay writes it down as it goes.

    asked: the model that the client named; model: the one that was asked last.
    began_s: monotonic. queued_s, waited_s, first_byte_s, took_s: None as long as that has not happened.
    """

    __slots__ = (
        "_waits_since_s",
        "asked",
        "began_s",
        "code",
        "events",
        "first_byte_s",
        "flight",
        "flown_s",
        "key_id",
        "model",
        "queued_s",
        "request_id",
        "route",
        "status",
        "stream",
        "took_s",
        "trace",
        "tries",
        "used",
        "waited_s",
    )

    def __init__(
        self, request_id: str, key_id: str, model: str, route: str, stream: bool, began_s: float
    ) -> None:
        self.request_id = request_id
        self.key_id = key_id
        self.asked = self.model = model
        self.route = route
        self.stream = stream
        self.began_s = began_s
        self._waits_since_s: float | None = None
        self.queued_s: float | None = None
        self.waited_s: float | None = None
        self.first_byte_s: float | None = None
        self.took_s: float | None = None
        self.status = 0
        self.code = ""
        self.tries: list[Try] = []
        self.trace: Trace | None = None  # only when spans are exported
        self.events = 0  # pieces of a stream
        self.used: Used | None = None  # its tokens, once they are known
        self.flight: Flown | None = None  # the last one
        self.flown_s = 0.0  # waited for others that read the same, in all

    def queued(self, now_s: float) -> None:
        """It waits for a slot from now on."""
        self._waits_since_s = now_s
        if self.queued_s is None:
            self.queued_s = now_s - self.began_s

    def tried(self, instance_id: str, why: str, now_s: float) -> None:
        """It goes to this instance."""
        if self._waits_since_s is not None:
            self._stop_waiting(now_s)
        self.tries.append(Try(instance_id, why, now_s - self.began_s))

    def recalled(self) -> None:
        """It does not go there yet."""
        self.tries.pop()

    def failed(self, failure: str, now_s: float) -> None:
        """The last attempt did."""
        if self.tries:
            self.tries[-1].failure = failure
            self.tries[-1].ended_s = now_s - self.began_s

    def led(self, followers: int) -> None:
        """So many wait for it to read what they begin with."""
        if self.flight is None or self.flight.led_by != self.request_id:
            self.flight = Flown(self.request_id, None)
        self.flight.followers = followers

    def follows(self, led_by: str, now_s: float) -> None:
        """It waits for that request to read what both begin with."""
        if self._waits_since_s is not None:
            self._stop_waiting(now_s)
        self.flight = Flown(led_by, now_s)

    def flown(self, end: FlightEnd, now_s: float) -> None:
        """It waits for that no longer."""
        flight = self.flight
        if flight is not None and flight.since_s is not None and flight.end is None:
            flight.end, flight.waited_s = end, now_s - flight.since_s
            self.flown_s += flight.waited_s

    def started(self, now_s: float) -> None:
        """The first byte goes to the client."""
        self.first_byte_s = now_s - self.began_s

    def ended(self, status: int, code: str, now_s: float) -> None:
        if self._waits_since_s is not None:
            self._stop_waiting(now_s)
        self.status = status
        self.code = code
        self.took_s = now_s - self.began_s

    def waits_s(self, now_s: float) -> float:
        """For how long it has been waiting for a slot; 0.0 when it does not."""
        return 0.0 if self._waits_since_s is None else now_s - self._waits_since_s

    @property
    def is_ok(self) -> bool:
        """Did it end with a whole answer?"""
        return self.status < 400 and not self.code

    @property
    def gap_s(self) -> float | None:
        """The mean time between two pieces of a stream; None when it had no two."""
        if self.events < 2 or self.first_byte_s is None or self.took_s is None:
            return None
        return (self.took_s - self.first_byte_s) / (self.events - 1)

    @property
    def outcome(self) -> RequestOutcome | None:
        """How it ended; None while it is under way."""
        if self.took_s is None:
            return None
        if self.is_ok:
            return RequestOutcome.OK
        if self.status == CLIENT_GONE:
            return RequestOutcome.CLIENT_GONE
        if self.code == UpstreamTimeout.code:
            return RequestOutcome.TIMEOUT
        if self.first_byte_s is not None:
            return RequestOutcome.STREAM_ERROR
        if self.code in _NOBODY or not self.tries:
            return RequestOutcome.REFUSED
        return RequestOutcome.CLIENT_ERROR if self.status < 500 else RequestOutcome.UPSTREAM_ERROR

    def view(self, now_s: float, at_s: float) -> RequestView:
        """What is shown of it. now_s: monotonic; at_s: the same moment, Unix time."""
        age_s = now_s - self.began_s
        waited_s = self.waited_s
        if self._waits_since_s is not None:
            waited_s = (waited_s or 0.0) + now_s - self._waits_since_s
        used = self.used
        return RequestView(
            request_id=self.request_id,
            at_s=round(at_s - age_s, 6),
            model=self.model,
            asked=self.asked,
            key_id=self.key_id,
            route=self.route,
            stream=self.stream,
            outcome=self.outcome,
            status=self.status,
            code=self.code,
            queued_s=_rounded(self.queued_s),
            waited_s=_rounded(waited_s),
            tries=tuple(self._try_views()),
            first_byte_s=_rounded(self.first_byte_s),
            took_s=round(self.took_s if self.took_s is not None else age_s, 6),
            events=self.events,
            prompt_tokens=used.prompt if used else None,
            cached_tokens=used.cached if used else None,
            completion_tokens=used.completion if used else None,
            estimated=used is not None and used.is_estimated,
            flight=self._flight_view(now_s),
        )

    def fields(self) -> Mapping[str, object]:
        """For the access log."""
        return {
            "request_id": self.request_id,
            "key_id": self.key_id,
            "model": self.model,
            "route": self.route,
            "stream": self.stream,
            "status": self.status,
            "code": self.code,
            "attempts": len(self.tries),
            "took_s": round(self.took_s or 0.0, 6),
            "first_byte_s": self.first_byte_s,
        }

    def plain(self) -> str:
        """The same as text. Every text in it is an id, a name or a code: nothing to be escaped."""
        took_us = int((self.took_s or 0.0) * 1e6 + 0.5)
        after = str(1_000_000 + took_us % 1_000_000)[1:]  # "%.6f" takes twice as long
        took_s = f"{took_us // 1_000_000}.{after}"
        return (
            f"request_id={self.request_id} key_id={self.key_id} model={self.model} route={self.route} "
            f"stream={self.stream} status={self.status} code={self.code or EMPTY} "
            f"attempts={len(self.tries)} took_s={took_s} first_byte_s={self.first_byte_s}"
        )

    # Private

    def _stop_waiting(self, now_s: float) -> None:
        since_s, self._waits_since_s = self._waits_since_s or now_s, None
        self.waited_s = (self.waited_s or 0.0) + now_s - since_s

    def _flight_view(self, now_s: float) -> FlightView | None:
        flight = self.flight
        if flight is None:
            return None
        since_s, waited_s = flight.since_s, flight.waited_s
        if since_s is not None and waited_s is None:
            waited_s = now_s - since_s
        return FlightView(
            led_by=flight.led_by,
            followers=flight.followers,
            at_s=_rounded(None if since_s is None else since_s - self.began_s),
            waited_s=_rounded(waited_s),
            end=flight.end,
        )

    def _try_views(self) -> Iterator[TryView]:
        for one in self.tries:
            is_last = one is self.tries[-1]
            ended_s = self.took_s if one.ended_s is None and is_last else one.ended_s
            yield TryView(
                instance_id=one.instance_id,
                why=one.why,
                at_s=round(one.at_s, 6),
                ended_s=_rounded(ended_s),
                failure=one.failure,
            )


class Ring:
    """The last requests that ended, the newest last. length: 0 keeps none."""

    def __init__(self, length: int) -> None:
        self._ended: deque[Timeline] = deque(maxlen=length)

    def add(self, timeline: Timeline) -> None:
        self._ended.append(timeline)

    def __iter__(self) -> Iterator[Timeline]:
        return iter(tuple(self._ended))


# Private

_NOBODY = frozenset({Overloaded.code, NoReadyInstance.code, ModelLoading.code, "draining"})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
