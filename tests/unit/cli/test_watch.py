"""Rates from looks at the list of requests."""

import pytest

from hostler.cli.watch import WINDOW_S, Watch
from hostler.core.timeline import RequestList, RequestOutcome, RequestView, TryView

OK = RequestOutcome.OK
ASKING = (TryView(instance_id="i", why="", at_s=0.0),)


def one(
    name: str,
    outcome: RequestOutcome | None = OK,
    *,
    at_s: float = 100.0,
    first_s: float | None = 0.2,
    events: int = 0,
    tokens: int | None = None,
    tries: tuple[TryView, ...] = ASKING,
    model: str = "m",
) -> RequestView:
    return RequestView(
        request_id=name, at_s=at_s, model=model, asked=model, key_id="k", route="chat", stream=True,
        outcome=outcome, first_byte_s=first_s, events=events, completion_tokens=tokens, tries=tries,
    )  # fmt: skip


def look(watch: Watch, now_s: float, *found: RequestView) -> None:
    watch.look(RequestList(requests=found), now_s)


def test_what_was_there_at_the_first_look_counts_nowhere() -> None:
    watch = Watch()
    look(watch, 0.0, one("a", tokens=50), one("b", tokens=50))
    assert watch.pace("m").requests_per_s == 0
    look(watch, 2.0, one("a", tokens=50), one("b", tokens=50), one("c", tokens=10))
    pace = watch.pace("m")
    assert (pace.requests_per_s, pace.tokens_per_s, pace.failed_per_s) == (0.5, 5.0, 0.0)
    assert pace.ttft is not None
    assert pace.ttft.p99_s == 0.2


def test_a_stream_counts_its_pieces_as_they_come_and_its_tokens_in_the_end() -> None:
    watch = Watch()
    look(watch, 0.0)
    look(watch, 1.0, one("a", None, events=10))
    assert watch.pace("m").tokens_per_s == 10
    assert watch.pace("m").in_flight == 1
    look(watch, 2.0, one("a", None, events=30))
    assert watch.pace("m").tokens_per_s == 15
    look(watch, 4.0, one("a", tokens=40))
    pace = watch.pace("m")
    assert (pace.tokens_per_s, pace.requests_per_s, pace.in_flight) == (10, 0.25, 0)
    assert pace.ttft is not None  # counted once, when it came
    look(watch, 5.0, one("a", tokens=40))
    assert watch.pace("m").requests_per_s == pytest.approx(0.2)


def test_requests_that_wait_are_told_from_those_in_an_instance() -> None:
    watch = Watch()
    waits = one("w", None, first_s=None, tries=())
    asks = one("a", None, first_s=None)
    again = one(
        "x", None, first_s=None, tries=(TryView(instance_id="i", why="", at_s=0, ended_s=1),)
    )
    look(watch, 0.0, waits, asks, again, one("b", None), one("c", None, model="other"))
    pace = watch.pace("m")
    assert (pace.in_flight, pace.waiting) == (2, 2)
    assert watch.pace("other").in_flight == 1
    assert watch.pace("nosuch").in_flight == 0


def test_failures_are_counted_among_the_requests() -> None:
    watch = Watch()
    look(watch, 0.0)
    look(watch, 1.0, one("a"), one("b", RequestOutcome.REFUSED), one("c", RequestOutcome.TIMEOUT))
    pace = watch.pace("m")
    assert (pace.requests_per_s, pace.failed_per_s) == (3, 2)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    watch = Watch()
    look(watch, 0.0)
    look(watch, 1.0, *[one(f"r{number}") for number in range(60)])
    for second in range(2, int(WINDOW_S) + 1):
        look(watch, float(second))
    assert watch.pace("m").requests_per_s == 6.0
    look(watch, WINDOW_S + 1.0)
    assert watch.pace("m").requests_per_s == 0


def test_a_look_asks_from_the_oldest_request_under_way() -> None:
    watch = Watch()
    assert watch.since is None
    look(watch, 0.0)
    assert watch.since is None
    look(watch, 1.0, one("a", at_s=130.0), one("b", None, at_s=110.0), one("c", at_s=90.0))
    assert watch.since == 109.0
    look(watch, 2.0, one("b", at_s=110.0), one("a", at_s=130.0))
    assert watch.since == 129.0
    look(watch, 3.0)
    assert watch.since == 129.0


def test_it_notices_that_requests_were_forgotten_unseen() -> None:
    watch = Watch()
    look(watch, 0.0, one("a", at_s=100.0))
    look(watch, 1.0, one("a", at_s=100.0), one("b", at_s=101.0))
    assert not watch.is_short
    look(watch, 2.0, one("z", at_s=102.0))  # b, which was to be told again, is not there any more
    assert watch.is_short
    look(watch, 3.0, one("z", at_s=102.0))
    assert not watch.is_short
