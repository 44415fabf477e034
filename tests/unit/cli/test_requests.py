"""How a request is told to people."""

from hostler.cli.requests import story
from hostler.core.timeline import FlightEnd, FlightView, RequestOutcome, RequestView, TryView


def told(
    flight: FlightView | None, tries: tuple[TryView, ...] = (), first_byte_s: float | None = None
) -> str:
    one = RequestView(
        request_id="two",
        at_s=1.0,
        model="m",
        asked="m",
        key_id="k",
        route="chat",
        stream=True,
        outcome=RequestOutcome.OK if tries else None,
        took_s=3.0,
        tries=tries,
        first_byte_s=first_byte_s,
        flight=flight,
    )
    return "\n".join(story(one))


def test_a_wait_for_another_request_is_a_step_with_its_end() -> None:
    went = (TryView(instance_id="i", why="prefix", at_s=2.0),)
    follower = FlightView(led_by="one", at_s=0.5, waited_s=1.5, end=FlightEnd.LANDED)
    assert "waited for one to read the same (landed)" in told(follower, went)
    assert "1.50 s" in told(follower, went)
    waits = told(FlightView(led_by="one", at_s=0.5, waited_s=2.5))
    assert "waited for one to read the same " in waits
    assert "no instance was asked" not in waits
    leader = told(FlightView(led_by="two", followers=3), went)
    assert "3 other(s) waited for it" in leader
    lent = FlightView(led_by="two", followers=1, at_s=0.0, waited_s=2.0, end=FlightEnd.LENT)
    assert "had its prompt read for all of them (lent)" in told(lent, went)
    assert "waited" not in told(None, went)


def test_a_stream_that_goes_on_at_another_instance_has_each_step_in_its_own_time() -> None:
    tries = (
        TryView(instance_id="one", why="prefix", at_s=0.1, ended_s=1.4, failure="lost"),
        TryView(instance_id="two", why="goes on there: prefix", at_s=1.5, ended_s=3.0),
    )
    lines = told(None, tries, first_byte_s=0.3).splitlines()
    steps = [
        " ".join(line.replace("█", " ").split())
        for line in lines
        if " ms " in line or " s " in line
    ]
    assert [step for step in steps if "one" in step or "two" in step] == [
        "100 ms try 1 on one (prefix) 200 ms",
        "300 ms its answer from one: lost 1.10 s",
        "1.50 s try 2 on two (goes on there: prefix) 1.50 s",
    ]
    lost = (TryView(instance_id="one", why="", at_s=0.1, ended_s=0.2, failure="refused"), tries[1])
    assert "try 2 on two (goes on there: prefix)" in told(None, lost, first_byte_s=2.0)
    assert "its answer from two" in told(None, lost, first_byte_s=2.0)
