"""F07, F08, F09, F11: failures, probes and retries in any order, against what they may do."""

import hypothesis.strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from hostler.routing.health import EJECT_MAX_S, FALL, RISE, Health
from hostler.routing.quarantine import Quarantine
from hostler.routing.verdict import ERRORS_MAX, Action, Failure, judge
from hostler.testing.clock import ManualClock
from tests.machines import CountedMachine, machine_settings

IDS = ["a", "b", "c", "d"]
ID = st.sampled_from(IDS)
BODY = st.sampled_from([b"w", b"x", b"y", b"z"])
FAILURE = st.sampled_from([*Failure, Failure.LOST, Failure.LOST, Failure.ENGINE_ERROR])
STARTS = st.sampled_from([False, False, False, True])
ATTEMPTS, LOST, HOLD_S = 3, 2, 60.0
BLAMELESS = (Failure.CLIENT_ERROR, Failure.GONE)


class Request:
    """One request on its way: what was tried, and what came of it."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.attempts = 0
        self.lost = 0
        self.errors = 0
        self.started = False


class Breaker(CountedMachine):
    """Requests of four kinds meet four instances that fail as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.health = Health(eject_s=1.0, clock=self.clock)
        self.quarantine = Quarantine(lost_max=LOST, hold_s=HOLD_S, clock=self.clock)
        self.accused: set[str] = set()  # who may be out
        self.bad: dict[str, int] = dict.fromkeys(IDS, 0)  # failed probes in a row
        self.good: dict[str, int] = dict.fromkeys(IDS, 0)  # good ones in a row since it was down
        self.down: set[str] = set()
        self.killed: dict[bytes, set[str]] = {}  # by a body, since its last success

    @rule(body=BODY, tries=st.lists(st.tuples(ID, FAILURE, STARTS), max_size=4), i=ID)
    def ride(self, body: bytes, tries: list[tuple[str, Failure, bool]], i: str) -> None:
        """A request is tried as often as it may be; when no more failures come, it succeeds."""
        waits_s = self.quarantine.refused_for_s(body)
        assert 0 <= waits_s <= HOLD_S + 1e-6  # sums of tenths
        if waits_s:
            assert len(self.killed[body]) >= LOST, "refused, and it killed too few"
            return
        request = Request(body)
        for one, failure, starts in tries:
            if not self.is_tried_again(request, one, failure, starts):
                return
        self.succeeded(i)
        self.quarantine.note_success(body)
        self.killed.pop(body, None)
        assert self.quarantine.refused_for_s(body) == 0

    @rule(ids=st.sets(ID, min_size=2), bodies=st.sets(BODY, min_size=3))
    def flood(self, ids: set[str], bodies: set[bytes]) -> None:
        """Many requests get 5xx from several instances at once."""
        for i in sorted(ids):
            for body in sorted(bodies):
                self.answered_5xx(i, body, {one for one in IDS if self.health.is_out(one)})

    @rule(i=ID, is_good=st.booleans())
    def probe(self, i: str, is_good: bool) -> None:
        self.health.probed(i, is_good)
        if is_good:
            self.bad[i], self.good[i] = 0, self.good[i] + 1
            if self.good[i] >= RISE:
                self.down.discard(i)
        else:
            self.good[i], self.bad[i] = 0, self.bad[i] + 1
            self.accused.add(i)
            if self.bad[i] >= FALL:
                self.down.add(i)

    @rule(kept=st.sets(ID))
    def replace(self, kept: set[str]) -> None:
        """Who is no more is forgotten: the next of that name begins without a mark."""
        for gone in set(IDS) - kept:
            self.health.forget(gone)
            self.bad[gone] = self.good[gone] = 0
            self.accused.discard(gone)
            self.down.discard(gone)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def wait_long(self) -> None:
        """No mark lasts for ever, but one that probes renew."""
        self.clock.advance(max(EJECT_MAX_S, HOLD_S) + 0.1)
        for i in IDS:
            assert self.health.is_out(i) == (i in self.down), f"{i} is out for ever"
        for body in self.killed:
            assert self.quarantine.refused_for_s(body) == 0

    @invariant()
    def only_the_accused_are_out(self) -> None:
        for i in IDS:
            assert i in self.accused or not self.health.is_out(i), f"{i} is out for nothing"
            assert self.health.is_down(i) == (i in self.down)
        assert self.health.troubled() <= self.accused

    # Parts

    def is_tried_again(self, request: Request, i: str, failure: Failure, starts: bool) -> bool:
        """An attempt fails. Whether somebody tries again."""
        request.attempts += 1
        request.started = request.started or starts
        before = {one for one in IDS if self.health.is_out(one)}
        match failure:
            case Failure.REFUSED | Failure.LOST:
                self.health.failed(i)
                self.accused.add(i)
                assert self.health.is_out(i)
            case Failure.ENGINE_ERROR | Failure.UNAVAILABLE:
                self.answered_5xx(i, request.body, before)
            case Failure.CLIENT_ERROR:
                self.succeeded(i)
        request.errors += failure is Failure.ENGINE_ERROR
        if failure is Failure.LOST:
            request.lost += 1
            self.quarantine.note_loss(request.body, i)
            self.killed.setdefault(request.body, set()).add(i)
        if failure in BLAMELESS:
            after = {one for one in IDS if self.health.is_out(one)}
            assert after <= before, "a client took an instance out"
        action = judge(
            failure,
            attempts=request.attempts,
            attempts_max=ATTEMPTS,
            lost=request.lost,
            lost_max=LOST,
            started=request.started,
            errors=request.errors,
        )
        assert (action is Action.DROP) == (failure is Failure.GONE)
        if action is not Action.RETRY:
            return False
        assert not request.started, "an answer that has begun is continued by another"
        assert request.attempts < ATTEMPTS
        assert request.lost < LOST
        assert failure not in (Failure.CLIENT_ERROR, Failure.SILENT)
        assert failure is not Failure.ENGINE_ERROR or request.errors < ERRORS_MAX
        return True

    def succeeded(self, i: str) -> None:
        self.health.succeeded(i)
        if i not in self.down:
            self.bad[i] = self.good[i] = 0
            self.accused.discard(i)
            assert not self.health.is_out(i), "a success was not forgiven"

    def answered_5xx(self, i: str, body: bytes, before: set[str]) -> None:
        self.health.answered_5xx(i, body, IDS)
        self.accused.add(i)
        after = {one for one in IDS if self.health.is_out(one)}
        if after - before:
            assert after - before == {i}
            assert 2 * len(after) <= len(IDS), f"5xx took out more than half: {after}"


def test_F07_F08_F09_no_order_of_failures_traps_an_instance_or_a_request() -> None:
    few = machine_settings(100, 40)
    run_state_machine_as_test(Breaker, settings=few)
