"""Timeline: what is remembered of a request, and how its end is called."""

import sys

import pytest

from hostler.core.errors import Overloaded, UpstreamTimeout
from hostler.core.timeline import RequestList, RequestOutcome, RequestView
from hostler.gateway.sight import merged
from hostler.gateway.timeline import CLIENT_GONE, Ring, Timeline
from hostler.gateway.usage import Used


def timeline(request_id: str = "r1", began_s: float = 100.0) -> Timeline:
    return Timeline(request_id, "k1", "m", "chat", True, began_s)


@pytest.mark.parametrize(
    ("status", "code", "tries", "started", "outcome"),
    [
        (200, "", 1, True, "ok"),
        (400, "", 1, False, "client_error"),
        (400, "context_length_exceeded", 1, False, "client_error"),
        (503, Overloaded.code, 0, False, "refused"),
        (503, Overloaded.code, 1, False, "refused"),
        (429, "rate_limit_exceeded", 0, False, "refused"),
        (502, "worker_lost", 2, False, "upstream_error"),
        (500, "", 1, False, "upstream_error"),
        (502, "worker_lost", 1, True, "stream_error"),
        (CLIENT_GONE, "client_gone", 1, True, "client_gone"),
        (CLIENT_GONE, "client_gone", 0, False, "client_gone"),
        (504, UpstreamTimeout.code, 1, True, "timeout"),
    ],
)
def test_each_end_has_its_word(
    status: int, code: str, tries: int, started: bool, outcome: str
) -> None:
    one = timeline()
    assert one.outcome is None
    for number in range(tries):
        one.tried(f"i{number}", "why", 101.0)
    if started:
        one.started(102.0)
    one.ended(status, code, 103.0)
    assert one.outcome is RequestOutcome(outcome)


def test_waits_of_several_attempts_are_one_sum() -> None:
    one = timeline()
    one.queued(101.0)
    assert one.view(103.0, 1000.0).waited_s == 2.0
    one.tried("i1", "first", 104.0)
    one.failed("lost", 105.0)
    one.queued(105.0)
    one.ended(503, "overloaded", 107.0)
    shown = one.view(200.0, 1000.0)
    assert (shown.at_s, shown.queued_s, shown.waited_s, shown.took_s) == (900.0, 1.0, 5.0, 7.0)
    assert [(t.at_s, t.ended_s, t.failure) for t in shown.tries] == [(4.0, 5.0, "lost")]


def test_the_gap_between_pieces_is_the_mean_of_a_stream() -> None:
    one = timeline()
    one.started(101.0)
    one.ended(200, "", 104.0)
    assert one.gap_s is None
    one.events = 4
    assert one.gap_s == 1.0


def test_a_ring_remembers_the_last_ones_and_a_ring_of_none_nothing() -> None:
    ring, none = Ring(3), Ring(0)
    for number in range(5):
        ring.add(timeline(f"r{number}"))
        none.add(timeline(f"r{number}"))
    assert [one.request_id for one in ring] == ["r2", "r3", "r4"]
    assert list(none) == []


def test_a_remembered_request_is_small() -> None:
    one = timeline()
    one.tried("i1", "least in flight", 101.0)
    one.started(102.0)
    one.used = Used(1, 2)
    one.ended(200, "", 103.0)
    parts = [one, *one.tries, one.tries, one.used]
    values = [getattr(one, name) for name in dir(one) if not name.startswith("__")]
    parts += [value for value in values if isinstance(value, float)]
    assert sum(map(sys.getsizeof, parts)) < 1000


def test_lists_of_several_gateways_are_one_with_those_under_way_first() -> None:
    def view(name: str, at_s: float, outcome: RequestOutcome | None = None) -> RequestView:
        return RequestView(
            request_id=name, at_s=at_s, model="m", asked="m", key_id="k", route="chat",
            stream=False, outcome=outcome,
        )  # fmt: skip

    ok = RequestOutcome.OK
    ours = RequestList(requests=(view("a", 1.0), view("b", 9.0, ok)))
    theirs = RequestList(requests=(view("c", 5.0), view("d", 7.0, ok)))
    found = merged([ours, theirs], 3, silent=1)
    assert [one.request_id for one in found.requests] == ["c", "a", "b"]
    assert found.silent == 1


def test_a_page_of_several_gateways_holds_those_that_ended_last() -> None:
    def view(name: str, at_s: float, took_s: float) -> RequestView:
        return RequestView(
            request_id=name, at_s=at_s, model="m", asked="m", key_id="k", route="chat",
            stream=False, outcome=RequestOutcome.OK, took_s=took_s,
        )  # fmt: skip

    ours = RequestList(requests=(view("long", 1.0, 9.0), view("old", 6.0, 1.0)), at_s=11.0)
    theirs = RequestList(requests=(view("new", 8.0, 1.0), view("older", 5.0, 1.0)), at_s=11.5)
    found = merged([ours, theirs], 2)
    assert [one.request_id for one in found.requests] == ["new", "long"]
    assert found.at_s == 11.0
