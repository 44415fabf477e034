"""How many copies a load asks for, and when that is believed."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.config import HeartbeatConfig
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import BadRequest
from hostler.core.model import WorkerType
from hostler.core.scaling import DemandReport, ModelDemand, ScalingRules, read_scaling, replicas_for
from hostler.core.worker import OperatorEvent, WorkerStartupRequest
from hostler.manager.scaling import FRESH_S, Autoscaler, Window
from hostler.manager.wishes import Wishes
from hostler.registry.registry import Registry
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer

RULES = ScalingRules(min_replicas=1, max_replicas=4, up_s=3, down_s=60)


def asked(in_flight: int, waiting: int = 0, waited_s: float = 0.0, **kw: int) -> int:
    demand = ModelDemand(model="m", in_flight=in_flight, waiting=waiting, waited_s=waited_s)
    given = {"concurrency": 4, "replicas": 1, "ready": 1, **kw}
    return replicas_for(RULES, demand, **given)


def test_the_load_in_slots_asks_for_replicas_within_the_bounds() -> None:
    assert [asked(n) for n in (0, 3, 4, 6, 7, 9, 10, 13, 100)] == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert asked(4, waiting=6) == 4, "who waits counts as who is served"


def test_exactly_the_target_is_not_above_it() -> None:
    rules = ScalingRules(max_replicas=9, target_in_flight=0.7)
    demand = ModelDemand(model="m", in_flight=21)
    assert replicas_for(rules, demand, concurrency=10, replicas=3, ready=3) == 3


def test_a_long_wait_asks_for_one_more_but_not_while_one_is_on_its_way() -> None:
    assert asked(2, waiting=1, waited_s=1.5, replicas=2, ready=2) == 3
    assert asked(2, waiting=1, waited_s=0.5, replicas=2, ready=2) == 1
    assert asked(2, waiting=1, waited_s=1.5, replicas=2, ready=1) == 1


def test_a_number_rises_only_when_the_load_was_high_all_through_the_window() -> None:
    window, told = Window(), []
    for at_s, many in enumerate([3, 3, 1, 3, 4, 3, 3]):
        told.append(window.decide(many, 1, RULES, float(at_s)))
    assert told == [1, 1, 1, 1, 1, 1, 3], (
        "one low look begins the wait anew; the least of it counts"
    )


def test_a_number_falls_to_the_most_that_was_asked_for_in_the_long_window() -> None:
    window = Window()
    told = [window.decide(3 if at_s == 20 else 2, 4, RULES, float(at_s)) for at_s in range(90)]
    assert told[:60] == [4] * 60
    assert told[60] == 3, "a peak 40 s ago still counts"
    assert told[81] == 2


def test_a_load_that_swings_moves_nothing() -> None:
    window = Window()
    assert {window.decide(1 + at_s % 2 * 3, 3, RULES, float(at_s)) for at_s in range(200)} == {3}


@given(st.lists(st.tuples(st.floats(0.2, 30), st.integers(1, 4)), max_size=60), st.integers(1, 4))
def test_whatever_the_load_does_the_number_stays_within_what_was_asked(
    looks: list[tuple[float, int]], now: int
) -> None:
    window, at_s, seen = Window(), 0.0, []
    for pause_s, many in looks:
        at_s += pause_s
        seen.append((at_s, many))
        new = window.decide(many, now, RULES, at_s)
        assert RULES.min_replicas <= new <= RULES.max_replicas
        lately = [m for t, m in seen if t >= at_s - RULES.up_s]
        if new > now:
            assert new == min(lately)
        if new < now:
            assert new == max(m for t, m in seen if t >= at_s - RULES.down_s)
        now = new


def deployment(**kw: object) -> Deployment:
    values: dict[str, object] = {"name": "m", "worker_type": WorkerType.LLM, "engine": "fake"}
    return Deployment(**(values | kw))  # type: ignore[arg-type]


def test_what_the_load_decided_counts_within_the_bounds_and_replicas_do_before_it() -> None:
    assert deployment(replicas=3).wanted_instances == 3
    assert deployment(replicas=9, scaling=RULES).wanted_instances == 4
    assert deployment(replicas=1, scaling=RULES, scaled=3).wanted_instances == 3
    assert deployment(replicas=1, scaled=3).wanted_instances == 1, "scaling was turned off"
    assert deployment(scaling=RULES, scaled=3, wish=Wish.STOPPED).wanted_instances == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_replicas": 2, "min_replicas": 3}, "need min_replicas (3) or more"),
        ({"min_replicas": 0, "max_replicas": 1}, "need 1 or more"),
        ({"max_replicas": 2, "target_in_flight": 1.5}, "it is a share of the slots"),
        ({"max_replica": 2}, "did you mean 'max_replicas'?"),
        ({"max_replicas": "two"}, "scaling.max_replicas"),
        ({"max_replicas": 2, "down_s": 0}, "need 1 or more"),
    ],
)
def test_rules_that_cannot_be_are_refused_with_what_is_wrong(
    given: dict[str, object], told: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        read_scaling(given)
    assert told in caught.value.message
    assert caught.value.param == "scaling"


def test_servers_given_by_url_are_not_scaled() -> None:
    with pytest.raises(BadRequest, match="not ours to start"):
        deployment(engine="openai", urls=("http://127.0.0.1:1/v1",), scaling=RULES)


class Scaled:
    """An autoscaler over real wishes, with a clock by hand."""

    def __init__(self, writer: Writer) -> None:
        self.now_s = 100.0
        self.crashes = False
        self.events: list[OperatorEvent] = []
        self.wishes = Wishes(MemoryStore(), writer, Catalog(), lambda: None)
        self.scaler = Autoscaler(
            wishes=self.wishes,
            registry=Registry(HeartbeatConfig(), self.clock),
            own=tuple,
            has_crashed=lambda key: self.crashes,
            tell=self.events.append,
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now_s

    async def pass_s(self, seconds: int, *in_flight: int) -> int:
        """Let time pass, each gateway with so much in flight; return how many are wished then."""
        for _ in range(seconds):
            self.now_s += 1
            for number, many in enumerate(in_flight):
                told = (ModelDemand(model="m", in_flight=many),)
                self.scaler.take(DemandReport(source=f"g{number}", models=told))
            await self.scaler.look()
        return self.wishes.find("m").wanted_instances


def test_gateways_are_added_up_and_one_that_says_nothing_any_more_counts_for_a_moment() -> None:
    async def main() -> None:
        writer = Writer("test")
        async with writer.running():
            it = Scaled(writer)
            rules = {"max_replicas": 4, "up_s": 2, "down_s": 30}
            await it.wishes.start(
                WorkerStartupRequest(model="m", engine="fake", concurrency=5, scaling=rules)
            )
            generation = it.wishes.find("m").generation
            assert await it.pass_s(3, 3, 4) == 2, "7 in flight for slots of 4 in use each"
            assert it.events[-1].message.startswith("1 -> 2 replicas: 7 in flight, 0 waiting")
            assert await it.pass_s(60) == 2, "nobody says anything: nothing is known, nothing moves"
            assert await it.pass_s(int(FRESH_S) + 40, 1) == 1
            assert it.wishes.find("m").generation == generation, "no process is another for it"

    asyncio.run(main())


def test_more_of_what_fails_is_not_asked_for() -> None:
    async def main() -> None:
        writer = Writer("test")
        async with writer.running():
            it = Scaled(writer)
            rules = {"max_replicas": 4, "up_s": 2, "down_s": 30}
            await it.wishes.start(
                WorkerStartupRequest(model="m", engine="fake", concurrency=5, scaling=rules)
            )
            it.crashes = True
            assert await it.pass_s(20, 20) == 1
            it.crashes = False
            assert await it.pass_s(1, 20) == 4

    asyncio.run(main())
