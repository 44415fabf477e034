"""Gateways of several machines on one set of slots: nobody is left out, and the sum has a bound."""

from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from hostler.app.config import GatewayConfig
from hostler.core.errors import ControllerUnavailable
from hostler.core.loads import EXPIRE_S, LoadAnswer, LoadReport
from hostler.gateway.loads import LoadTeller
from hostler.gateway.probes import Prober
from hostler.registry.loads import LoadSum
from hostler.routing.afar import Afar
from hostler.routing.claim import Claim, Outcome
from hostler.routing.pool import Busy
from hostler.routing.router import Router
from hostler.testing.clock import ManualClock
from tests.machines import CountedMachine, machine_settings
from tests.unit.routing.fleet import instance, snapshot


class Machine:
    """A gateway alone on a machine, its router and its way to the controller, which may be cut."""

    def __init__(
        self, name: str, whole: LoadSum, clock: ManualClock, slots: dict[str, int]
    ) -> None:
        self.name, self.whole, self.is_cut = name, whole, False
        self.router = Router(clock=clock)
        self.router.update(snapshot(*(instance(i, concurrency=n) for i, n in slots.items())))
        prober = Prober(GatewayConfig(), self.router, lambda one, is_down: None, lambda one: None)
        self.teller = LoadTeller(self.router, prober, self._tell, clock)
        self.claims: list[Claim] = []

    async def _tell(self, report: LoadReport) -> LoadAnswer:
        if self.is_cut:
            raise ControllerUnavailable
        return self.whole.take(self.name, report)

    def tell(self) -> bool:
        return run(self.teller.tell_once)

    def take_all(self) -> int:
        """Claim until nothing is left; return how many this machine has then."""
        while True:
            try:
                self.claims.append(self.router.claim("m"))
            except Busy:
                return len(self.claims)

    def borrow_all(self) -> int:
        """The same, and tell until there is nothing more to be had."""
        had = 0
        while had != self.take_all():
            had = len(self.claims)
            self.tell()
            self.tell()  # the first one may have found a controller that does not know it
        return had

    def give_back(self, count: int = 1) -> None:
        for _ in range(count):
            self.claims.pop().release(Outcome.OK)


def run(work: Callable[[], Awaitable[bool]]) -> bool:
    coroutine = work()
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as end:
        return bool(end.value)
    raise AssertionError("it waits for something")


def fleet(count: int, slots: int = 8) -> tuple[ManualClock, list[Machine]]:
    clock = ManualClock()
    whole = LoadSum(clock)
    made = [Machine(f"g{n}", whole, clock, {"i": slots}) for n in range(count)]
    for _ in range(2):
        for one in made:
            one.tell()
    return clock, made


@given(st.integers(1, 64), st.integers(2, 9), st.integers(0, 70), st.integers(0, 70))
def test_a_machine_may_always_use_its_share(slots: int, machines: int, a: int, b: int) -> None:
    afar = Afar()
    afar.machines, afar.theirs, afar.ours = machines, {"i": a}, {"i": b}
    limit = afar.limit("i", slots, is_wanted=False)
    assert max(1, slots / machines) <= limit <= slots
    share = max(1, -(-slots // machines))
    assert limit <= max(share, slots - a)  # beyond it only what is free


def test_one_that_is_alone_has_all_slots_and_two_have_half_each() -> None:
    _, (alone,) = fleet(1)
    assert alone.take_all() == 8
    _, (a, b) = fleet(2)
    assert (a.take_all(), b.take_all()) == (4, 4)


def test_what_the_others_do_not_use_is_borrowed_step_by_step() -> None:
    _, (a, _) = fleet(2)
    had = [a.take_all()]
    for _ in range(3):
        a.tell()
        had.append(a.take_all())
    assert had == [4, 6, 7, 8]


def test_who_comes_later_has_its_share_at_once_and_the_others_give_way() -> None:
    _, (a, b) = fleet(2)
    assert a.borrow_all() == 8
    b.tell()
    assert b.take_all() == 4  # 12 on 8 slots: the bound
    b.tell()
    a.tell()
    a.give_back(4)
    assert a.take_all() == 4
    assert (a.take_all(), b.take_all()) == (4, 4)


def test_more_machines_than_slots_have_one_each() -> None:
    _, machines = fleet(3, slots=2)
    assert [one.take_all() for one in machines] == [1, 1, 1]


def test_policies_see_the_load_of_other_machines() -> None:
    clock = ManualClock()
    whole = LoadSum(clock)
    a, b = (Machine(name, whole, clock, {"x": 8, "y": 8}) for name in "ab")
    for claim in [a.router.claim("m") for _ in range(4)]:
        if claim.instance.instance_id == "x":
            claim.release(Outcome.OK)
    for one in (a, b):
        one.tell()
    assert [b.router.claim("m").instance.instance_id for _ in range(2)] == ["x", "x"]


def test_F22_without_a_controller_each_has_all_slots_after_a_while() -> None:
    clock, (a, b) = fleet(2)
    a.is_cut = True
    assert a.take_all() == 4
    a.tell()
    assert a.take_all() == 4
    clock.advance(EXPIRE_S + 0.1)
    a.tell()
    assert a.take_all() == 8
    assert b.borrow_all() == 8  # it has heard nothing of the other for as long
    a.is_cut = False
    a.tell()
    b.tell()
    a.give_back()
    assert a.take_all() == 7


def test_a_slot_that_others_give_back_reaches_who_waits() -> None:
    _, (a, b) = fleet(2)
    b.take_all()
    b.tell()
    assert a.borrow_all() == 4
    got: list[object] = []
    a.router.enqueue("m", done=got.append)
    b.give_back()
    a.tell()
    assert got == []  # nobody has told it
    b.tell()
    a.tell()
    assert len(got) == 1


def test_nobody_keeps_more_than_half_while_others_wait() -> None:
    _, machines = fleet(5)  # shares of 2
    a, b = machines[:2]
    assert a.borrow_all() == 8
    b.take_all()
    waits = b.router.enqueue("m", done=lambda told: None)
    b.tell()
    a.tell()
    a.give_back(6)
    assert a.take_all() == 4
    waits.cancel()
    b.tell()
    assert a.borrow_all() == 6  # all that is not used


class Fleet(CountedMachine):
    """Machines that claim, give back and tell in any order; the sum stays within the bound."""

    @initialize(machines=st.integers(2, 4), slots=st.integers(1, 12))
    def begin(self, machines: int, slots: int) -> None:
        self.slots = slots
        _, self.machines = fleet(machines, slots)

    @rule(data=st.data(), count=st.integers(1, 12))
    def claim(self, data: st.DataObject, count: int) -> None:
        one = data.draw(st.sampled_from(self.machines))
        for _ in range(count):
            try:
                one.claims.append(one.router.claim("m"))
            except Busy:
                return

    @precondition(lambda self: any(one.claims for one in self.machines))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([one for one in self.machines if one.claims])).give_back()

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.machines))

        def done(told: object) -> None:
            assert isinstance(told, Claim)
            one.claims.append(told)

        one.router.enqueue("m", done=done)

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.machines)).tell()

    @invariant()
    def the_sum_has_a_bound(self) -> None:
        if not hasattr(self, "machines"):
            return
        count, had = len(self.machines), sum(len(one.claims) for one in self.machines)
        share = max(1, -(-self.slots // count))
        assert had <= self.slots + (count - 1) * share

    @invariant()
    def nobody_is_left_out(self) -> None:
        if not hasattr(self, "machines"):
            return
        share = max(1, -(-self.slots // len(self.machines)))
        for one in self.machines:
            if len(one.claims) < share and not one.router.waiting("m"):
                one.router.claim("m").release(Outcome.UNUSED)


TestFleet = Fleet.TestCase
TestFleet.settings = machine_settings(60, 40)
