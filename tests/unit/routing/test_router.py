"""Slots, queue and ejection of the router, on an injected clock."""

import asyncio

import pytest

from hostler.core.errors import (
    HostlerError,
    ModelLoading,
    ModelNotFound,
    NoReadyInstance,
    Overloaded,
)
from hostler.core.lifecycle import State
from hostler.routing.claim import Claim, Outcome
from hostler.routing.pool import Busy
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model, snapshot


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def router(
    *ids: str, concurrency: int = 2, clock: Clock | None = None, queue_length: int = 128
) -> Router:
    made = Router(clock=clock or Clock(), queue_length=queue_length)
    made.update(snapshot(*(instance(i, concurrency=concurrency) for i in ids)))
    return made


def test_a_slot_is_given_back_once_however_often_it_is_released() -> None:
    ours = router("a")
    claim = ours.claim("m")
    assert ours.load == {"a": 1}
    claim.release(Outcome.OK)
    claim.release(Outcome.LOST)
    assert ours.load == {}
    assert not ours.health


def test_requests_spread_over_idle_instances_in_turns() -> None:
    ours = router("a", "b", "c")
    used = []
    for _ in range(6):
        claim = ours.claim("m")
        used.append(claim.instance.instance_id)
        claim.release(Outcome.OK)
    assert sorted(used) == ["a", "a", "b", "b", "c", "c"]


def test_the_instance_with_the_fewest_requests_is_chosen() -> None:
    ours = router("a", "b")
    first, second = ours.claim("m"), ours.claim("m")
    assert {first.instance.instance_id, second.instance.instance_id} == {"a", "b"}
    first.release(Outcome.OK)
    assert ours.claim("m").instance is first.instance


def test_an_alias_leads_to_the_model() -> None:
    ours = Router()
    ours.update(snapshot(instance("a"), models=(model("m", aliases=("chat",)),)))
    assert ours.claim("chat").instance.instance_id == "a"


def test_what_cannot_be_served_says_why() -> None:
    ours = Router()
    ours.update(snapshot(instance("a", state=State.STARTING), models=(model("m", loading=True),)))
    with pytest.raises(ModelNotFound):
        ours.claim("x")
    with pytest.raises(ModelLoading, match="1 starting") as loading:
        ours.claim("m")
    assert (loading.value.retry_after_s or 0) >= 1
    ours.update(snapshot(instance("a", state=State.FAILED), models=(model("m"),)))
    with pytest.raises(NoReadyInstance) as failed:
        ours.claim("m")
    assert (failed.value.retry_after_s or 0) >= 1


def test_an_excluded_instance_is_not_used_even_when_it_is_the_last() -> None:
    ours = router("a", "b")
    assert ours.claim("m", exclude={"a"}).instance.instance_id == "b"
    with pytest.raises(NoReadyInstance):
        ours.claim("m", exclude={"a", "b"})


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.LOST])
def test_a_connection_failure_takes_an_instance_out_at_once_and_longer_each_time(
    outcome: Outcome,
) -> None:
    clock = Clock()
    ours = router("a", "b", clock=clock)
    claim = ours.claim("m", exclude={"b"})
    claim.release(outcome)
    assert {ours.claim("m").instance.instance_id for _ in range(2)} == {"b"}
    clock.now_s += 1.01
    claim = ours.claim("m", exclude={"b"})
    claim.release(outcome)
    clock.now_s += 1.5
    assert ours.health.is_out("a")
    clock.now_s += 0.6
    assert not ours.health.is_out("a")


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_ERROR, Outcome.CLIENT_GONE])
def test_F08_F09_a_client_never_takes_an_instance_out(outcome: Outcome) -> None:
    ours = router("a")
    for _ in range(100):
        ours.claim("m").release(outcome)
    assert not ours.health
    assert ours.load == {}


def test_F08_5xx_of_one_request_takes_nobody_out_and_never_more_than_half() -> None:
    ours = router("a", "b", "c")
    for _ in range(30):
        ours.claim("m").release(Outcome.UPSTREAM_STATUS, witness=b"same")
    assert not any(ours.health.is_out(i) for i in "abc")
    for n in range(60):
        ours.claim("m").release(Outcome.UPSTREAM_STATUS, witness=b"%d" % n)
    assert sum(ours.health.is_out(i) for i in "abc") == 1


def test_when_everyone_is_ejected_the_one_ejected_longest_ago_is_asked() -> None:
    clock = Clock()
    ours = router("a", "b", clock=clock)
    ours.claim("m", exclude={"b"}).release(Outcome.REFUSED)
    clock.now_s += 0.1
    ours.claim("m", exclude={"a"}).release(Outcome.REFUSED)
    assert ours.claim("m").instance.instance_id == "a"


def test_an_instance_that_fails_two_probes_is_out_until_two_succeed() -> None:
    ours = router("a")
    ours.note_probe("a", False)
    ours.claim("m").release(Outcome.CLIENT_GONE)
    ours.note_probe("a", False)
    assert ours.usable("m") == ()
    with pytest.raises(NoReadyInstance):
        ours.claim("m")
    ours.note_probe("a", True)
    assert ours.health.is_down("a")
    ours.note_probe("a", True)
    assert len(ours.usable("m")) == 1


def test_those_who_wait_are_served_in_the_order_they_came() -> None:
    ours = router("a", concurrency=1)
    held = ours.claim("m")
    got: list[tuple[int, Claim | HostlerError]] = []
    for n in range(3):
        ours.enqueue("m", exclude=set(), done=lambda r, n=n: got.append((n, r)))  # type: ignore[misc]
    with pytest.raises(Busy):
        ours.claim("m")
    held.release(Outcome.OK)
    for n in range(3):
        assert [place for place, _ in got] == list(range(n + 1))
        claim = got[n][1]
        assert isinstance(claim, Claim)
        claim.release(Outcome.OK)
    assert ours.load == {}


def test_a_full_queue_refuses_with_a_measured_retry_after() -> None:
    clock = Clock()
    ours = router("a", concurrency=1, clock=clock, queue_length=2)
    claim = ours.claim("m")
    clock.now_s += 6.0
    claim.release(Outcome.OK)
    ours.claim("m")
    for _ in range(2):
        ours.enqueue("m", exclude=set(), done=lambda result: None)
    with pytest.raises(Overloaded) as refused:
        ours.enqueue("m", exclude=set(), done=lambda result: None)
    assert refused.value.retry_after_s == 18  # three turns of six seconds in one slot


def test_those_who_wait_are_told_when_the_last_instance_goes() -> None:
    ours = router("a", concurrency=1)
    held = ours.claim("m")
    got: list[Claim | HostlerError] = []
    ours.enqueue("m", exclude=set(), done=got.append)
    ours.update(snapshot(models=(model("m"),)))
    assert isinstance(got[0], NoReadyInstance)
    ours.enqueue("m", exclude=set(), done=got.append)
    assert isinstance(got[1], NoReadyInstance)
    ours.update(snapshot())
    held.release(Outcome.LOST)
    assert ours.load == {}


def test_waiting_ends_at_the_deadline() -> None:
    async def main() -> None:
        ours = router("a", concurrency=1)
        held = ours.claim("m")
        with pytest.raises(Overloaded):
            await ours.wait_claim("m", deadline_s=0.0)
        assert ours.waiting("m") == 0
        held.release(Outcome.OK)
        assert ours.load == {}

    asyncio.run(main())


def test_F54_a_slot_lent_to_a_task_that_was_cancelled_comes_back() -> None:
    async def main() -> None:
        ours = router("a", concurrency=1)
        held = ours.claim("m")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(ours.wait_claim("m"))
            await asyncio.sleep(0)
            held.release(Outcome.OK)  # lends the slot to the waiter, which has not run yet
            assert ours.load == {"a": 1}
            waiting.cancel()
        assert ours.load == {}

    asyncio.run(main())
