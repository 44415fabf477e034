"""A session stays where it is as long as it can, and few move when instances come and go."""

from collections import Counter
from collections.abc import Iterable

import pytest

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.claim import Outcome
from hostler.routing.policies import Loads
from hostler.routing.router import Router
from hostler.routing.session import SessionAffinity
from tests.unit.routing.fleet import instance, model, snapshot

SESSIONS = [b"session %d" % n for n in range(2000)]


class Of(Ask):
    def __init__(self, session: bytes) -> None:
        self._session = session

    @property
    def session(self) -> bytes:
        return self._session


def fleet(places: Iterable[int], epoch: int = 1) -> list[InstanceView]:
    return [instance(f"{epoch}-{n}", replica=n, epoch=epoch, concurrency=4) for n in places]


def homes(ready: list[InstanceView]) -> list[str]:
    policy = SessionAffinity()
    policy.update(ready)
    return [policy.choose(ready, Loads(), Of(s)).instance_id for s in SESSIONS]


def moved(before: list[str], after: list[str]) -> float:
    return sum(a != b for a, b in zip(before, after, strict=True)) / len(before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 50])
def test_sessions_move_to_a_new_instance_alone_and_from_one_that_goes_alone(count: int) -> None:
    before, after = homes(fleet(range(count))), homes(fleet(range(count + 1)))
    new = f"1-{count}"
    assert all(b == new for a, b in zip(before, after, strict=True) if a != b)
    assert moved(before, after) <= 1 / (count + 1) + 0.03
    assert moved(before, after) >= 1 / (count + 1) - 0.03


def test_sessions_are_spread_evenly() -> None:
    counted = Counter(homes(fleet(range(5))))
    assert len(counted) == 5
    assert max(counted.values()) <= 1.25 * len(SESSIONS) / 5


def test_an_instance_that_is_replaced_gets_its_sessions_back() -> None:
    old = fleet(range(3))
    replaced = [*old[:2], *fleet([2], epoch=2)]
    renamed = [home.replace("2-", "1-") for home in homes(replaced)]
    assert renamed == homes(old)
    both = [*old, *fleet([2], epoch=2)]  # while it is renewed two have the same place
    assert moved(homes(old), homes(both)) <= 1 / 4 + 0.03


def test_instances_of_a_controller_that_tells_no_places_share_the_sessions() -> None:
    unplaced = [instance(i) for i in "abcd"]
    counted = Counter(homes(unplaced))
    assert min(counted.values()) >= 0.75 * len(SESSIONS) / 4


def test_a_session_goes_elsewhere_when_its_instance_is_full_or_excluded_and_comes_back() -> None:
    ours = Router()
    ours.update(snapshot(*fleet(range(3)), models=(model("m", policy="session"),)))
    mine = Of(b"mine")
    held = [ours.claim("m", mine) for _ in range(4)]
    (home,) = {claim.instance.instance_id for claim in held}
    assert {claim.why for claim in held} == {"session"}
    second = ours.claim("m", mine)
    assert second.instance.instance_id != home
    assert second.why == "session, but its instance is full"
    held.pop().release(Outcome.OK)
    assert ours.claim("m", mine).instance.instance_id == home
    third = ours.claim("m", mine, exclude={home, second.instance.instance_id})
    assert third.instance.instance_id not in (home, second.instance.instance_id)


def test_who_names_no_session_goes_to_the_least_busy() -> None:
    ours = Router()
    ours.update(snapshot(*fleet(range(3)), models=(model("m", policy="session"),)))
    claims = [ours.claim("m") for _ in range(3)]
    assert len({claim.instance.instance_id for claim in claims}) == 3
    assert claims[0].why == "no session, least in flight"
