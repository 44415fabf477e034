"""Watch: how quickly each model answers, from looks at the list of requests, one after the other.

Pure, and independent of the server's clock: what has happened between two looks is counted into the later
one, by the clock of who looks. What was there at the first look counts nowhere.
"""

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from hostler.cli.measured import Spread, spread
from hostler.core.timeline import RequestList, RequestOutcome, RequestView

WINDOW_S = 10.0  # that rates and times are of
_MARGIN_S = 1.0  # by which looks overlap, so that none is missed


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """One model's requests. in_flight, waiting: now; the others of the last seconds that were watched.

    ttft: from the request to the first piece, of streams. failed_per_s: are among requests_per_s.
    """

    in_flight: int = 0
    waiting: int = 0
    requests_per_s: float = 0.0
    failed_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft: Spread | None = None


class Watch:
    """Remembers what it has seen, as far back as its window."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._looks: deque[_Look] = deque()
        self._now: Mapping[str, tuple[int, int]] = {}
        self._newest_s: float | None = None
        self.since: float | None = None  # what the next look has to ask for
        self.is_short = False  # requests ended unseen: the gateways remember too few

    def look(self, found: RequestList, now_s: float) -> None:
        """Take an answer of `/api/v1/requests`, asked with `since`."""
        is_first = not self._looks
        look = _Look(now_s)
        known: dict[str, _Known] = {}
        now: dict[str, tuple[int, int]] = {}
        for one in found.requests:
            before = self._known.get(one.request_id) or _Known()
            known[one.request_id] = _Known(
                tokens=_tokens(one),
                has_begun=one.first_byte_s is not None,
                has_ended=one.outcome is not None,
                at_s=one.at_s,
            )
            if one.outcome is None:
                busy, waiting = now.get(one.model, (0, 0))
                waits = _is_waiting(one)
                now[one.model] = (busy + (not waits), waiting + waits)
            if not is_first:
                look.count(one, before)
        if not is_first:
            self._is_whole(known)
        self._known, self._now = known, now
        self._looks.append(look)
        while len(self._looks) > 2 and now_s - self._looks[1].at_s >= WINDOW_S:
            self._looks.popleft()
        self._ask_from(found.requests)

    def pace(self, model: str) -> Pace:
        """How quickly this model answers now."""
        busy, waiting = self._now.get(model, (0, 0))
        looks = list(self._looks)
        if len(looks) < 2:
            return Pace(in_flight=busy, waiting=waiting)
        seconds = max(looks[-1].at_s - looks[0].at_s, 1e-9)
        mine = [one.of[model] for one in looks[1:] if model in one.of]
        return Pace(
            in_flight=busy,
            waiting=waiting,
            requests_per_s=sum(one.ended for one in mine) / seconds,
            failed_per_s=sum(one.failed for one in mine) / seconds,
            tokens_per_s=max(0, sum(one.tokens for one in mine)) / seconds,
            ttft=spread(value for one in mine for value in one.firsts),
        )

    # Private

    def _is_whole(self, known: Mapping[str, "_Known"]) -> None:
        """See whether something that this answer should hold is missing."""
        asked_from = self.since if self.since is not None else 0.0
        expected = [request_id for request_id, one in self._known.items() if one.at_s >= asked_from]
        self.is_short = any(request_id not in known for request_id in expected)

    def _ask_from(self, found: Iterable[RequestView]) -> None:
        """The next look has to begin at the oldest request that may still change."""
        found = tuple(found)
        if not found:
            return
        newest_s = max(one.at_s for one in found)
        self._newest_s = max(newest_s, self._newest_s or newest_s)
        oldest_s = min((one.at_s for one in found if one.outcome is None), default=self._newest_s)
        self.since = max(0.0, min(oldest_s, self._newest_s) - _MARGIN_S)


# Private


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of one request already."""

    tokens: int = 0
    has_begun: bool = False
    has_ended: bool = False
    at_s: float = 0.0


class _Tally:
    """What happened to one model's requests before one look."""

    __slots__ = ("ended", "failed", "firsts", "tokens")

    def __init__(self) -> None:
        self.ended = self.failed = self.tokens = 0
        self.firsts: list[float] = []


class _Look:
    """One look, and what has happened since the one before."""

    __slots__ = ("at_s", "of")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.of: dict[str, _Tally] = {}

    def count(self, one: RequestView, before: _Known) -> None:
        tally = self.of.setdefault(one.model, _Tally())
        tally.tokens += _tokens(one) - before.tokens
        if one.stream and one.first_byte_s is not None and not before.has_begun:
            tally.firsts.append(one.first_byte_s)
        if one.outcome is not None and not before.has_ended:
            tally.ended += 1
            tally.failed += one.outcome is not RequestOutcome.OK


def _tokens(one: RequestView) -> int:
    """Tokens written so far: the pieces of a stream until its engine tells."""
    return one.events if one.completion_tokens is None else one.completion_tokens


def _is_waiting(one: RequestView) -> bool:
    return one.first_byte_s is None and not any(attempt.ended_s is None for attempt in one.tries)
