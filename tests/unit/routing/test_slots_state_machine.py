"""F54: whatever happens in whatever order, slots out are requests in flight, and end at 0; nobody is lost."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    consumes,
    invariant,
    multiple,
    rule,
)

from hostler.core.errors import HostlerError
from hostler.core.lifecycle import State
from hostler.core.serving import Priority
from hostler.routing.ask import Ask
from hostler.routing.claim import Claim, Outcome
from hostler.routing.queue import Waiter
from hostler.routing.router import Router
from tests.machines import CountedMachine, machine_settings
from tests.unit.routing.fleet import KeyAsk, instance, model, snapshot

IDS = ["a", "b", "c"]
QUEUE_LENGTH = 4
asks = st.builds(
    KeyAsk,
    st.sampled_from(["k", "l", "n"]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    priority=st.sampled_from(list(Priority)),
    prompt_tokens=st.integers(0, 1000),
)


class Slots(CountedMachine):
    claims = Bundle("claims")
    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.router = Router(clock=lambda: self.now_s, queue_length=QUEUE_LENGTH)
        self.limits: dict[str, int] = {}
        self.held: list[Claim] = []
        self.lent_to_waiters: list[Claim] = []
        self.waiting: list[Waiter] = []
        self.told: dict[int, int] = {}  # how often each request in a queue was answered
        self.update({"a": (State.READY, 2)})

    @rule(
        wanted=st.dictionaries(
            st.sampled_from(IDS),
            st.tuples(
                st.sampled_from([State.READY, State.SUSPECT, State.FAILED]), st.integers(1, 3)
            ),
        )
    )
    def update(self, wanted: dict[str, tuple[State, int]]) -> None:
        self.limits = {i: slots for i, (_, slots) in wanted.items()}
        views = [instance(i, state=s, concurrency=n) for i, (s, n) in wanted.items()]
        before = dict(self.router.load)
        self.router.update(snapshot(*views, models=(model("m"),)))
        for i, count in self.router.load.items():
            assert count <= max(self.limits.get(i, 0), before.get(i, 0))

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(target=claims, ask=asks, exclude=st.sets(st.sampled_from(IDS), max_size=2))
    def claim(self, ask: Ask, exclude: set[str]) -> object:
        try:
            made = self.router.claim("m", ask, exclude=exclude)
        except HostlerError:
            return multiple()
        assert made.instance.instance_id not in exclude
        assert self.router.load[made.instance.instance_id] <= made.instance.concurrency
        self.held.append(made)
        return made

    @rule(target=waiters, ask=asks, exclude=st.sets(st.sampled_from(IDS), max_size=1))
    def wait(self, ask: Ask, exclude: set[str]) -> object:
        number = len(self.told)
        self.told[number] = 0

        def done(result: Claim | HostlerError) -> None:
            self.told[number] += 1
            self.waiting[:] = [one for one in self.waiting if one.done is not done]
            if isinstance(result, Claim):
                assert result.instance.instance_id not in exclude
                if not self.router.health:
                    above = [w for w in self.waiting if w.priority < ask.priority]
                    assert all(w.exclude for w in above), "a lower class went first"
                self.held.append(result)
                self.lent_to_waiters.append(result)

        try:
            waiter = self.router.enqueue("m", ask, exclude=exclude, done=done)
        except HostlerError:
            assert not self.told[number]
            return multiple()
        if not self.told[number]:
            self.waiting.append(waiter)
        return waiter

    @rule(
        claim=consumes(claims),
        outcome=st.sampled_from(list(Outcome)),
        again=st.booleans(),
        answer_tokens=st.none() | st.integers(0, 1000),
    )
    def release(
        self, claim: Claim, outcome: Outcome, again: bool, answer_tokens: int | None
    ) -> None:
        claim.answer_tokens = answer_tokens
        self._give_back(claim, outcome)
        if again:
            claim.release(Outcome.OK)

    @rule(outcome=st.sampled_from(list(Outcome)))
    def release_one_lent_to_a_waiter(self, outcome: Outcome) -> None:
        if self.lent_to_waiters:
            self._give_back(self.lent_to_waiters.pop(), outcome)

    @rule(waiter=consumes(waiters), too_late=st.booleans())
    def leave(self, waiter: Waiter, too_late: bool) -> None:
        if too_late:
            waiter.expire()
        waiter.cancel()
        self.waiting[:] = [one for one in self.waiting if one is not waiter]

    @rule(i=st.sampled_from(IDS), good=st.booleans())
    def probe(self, i: str, good: bool) -> None:
        if i in self.limits:
            self.router.note_probe(i, good)

    @invariant()
    def slots_out_are_requests_in_flight(self) -> None:
        counts: dict[str, int] = {}
        for claim in self.held:
            counts[claim.instance.instance_id] = counts.get(claim.instance.instance_id, 0) + 1
        assert dict(self.router.load) == counts

    @invariant()
    def nobody_in_the_queue_is_lost_or_told_twice(self) -> None:
        assert self.router.waiting("m") == len(self.waiting) <= QUEUE_LENGTH
        assert max(self.told.values(), default=0) <= 1

    @invariant()
    def no_slot_is_idle_that_a_waiter_could_have(self) -> None:
        if self.router.health:
            return  # who is out comes back by time or by a probe
        free = {
            i.instance_id
            for i in self.router.usable("m")
            if self.router.load.get(i.instance_id, 0) < i.concurrency
        }
        assert all(free <= waiter.exclude for waiter in self.waiting)

    def teardown(self) -> None:
        while self.held:
            self._give_back(self.held[0], Outcome.OK)
        assert not self.router.load

    def _give_back(self, claim: Claim, outcome: Outcome) -> None:
        self.held.remove(claim)
        if claim in self.lent_to_waiters:
            self.lent_to_waiters.remove(claim)
        claim.release(outcome)


Slots.TestCase.settings = machine_settings(150, 40)
test_F54_slots_out_are_requests_in_flight_and_return_to_zero = Slots.TestCase
