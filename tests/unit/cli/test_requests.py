"""How a request is told to people."""

from hostler.cli.requests import story
from hostler.core.timeline import FlightEnd, FlightView, RequestOutcome, RequestView, TryView


def told(flight: FlightView | None, tries: tuple[TryView, ...] = ()) -> str:
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
