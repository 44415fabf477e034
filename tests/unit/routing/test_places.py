"""Places against a plain list: who is free, who is least busy, and whoever comes and goes."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView
from hostler.routing.places import Places, next_bit, nth_bit
from hostler.routing.policies import LeastTokens
from tests.machines import CountedMachine, machine_settings
from tests.unit.routing.fleet import KeyAsk, instance

NAMES = [f"i{n}" for n in range(6)]


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(-1, 201), st.integers(0, 300))
def test_bits_are_found_as_in_a_list(places: set[int], after: int, number: int) -> None:
    mask, ordered = sum(1 << place for place in places), sorted(places)
    assert next_bit(mask, after) == next((p for p in ordered if p > after), ordered[0])
    assert nth_bit(mask, number % len(ordered)) == ordered[number % len(ordered)]


@given(st.sets(st.integers(0, 99), min_size=1, max_size=3), st.integers(0, 2**32))
@settings(max_examples=30)
def test_chance_leaves_out_nobody_however_few_may_be_chosen(among: set[int], seed: int) -> None:
    places = Places()
    for number in range(100):
        places.put(instance(f"i{number}"), 0)
    mask, random = sum(1 << place for place in among), Random(seed).random
    assert {places.by_chance(mask, random) for _ in range(80)} == among


class Stable(CountedMachine):
    """A naive list of instances with their loads beside the real thing."""

    @initialize(slots=st.lists(st.integers(1, 4), min_size=1, max_size=6))
    def begin(self, slots: list[int]) -> None:
        self.places, self.policy = Places(), LeastTokens()
        self.policy.places = self.places
        self.known: dict[str, InstanceView] = {}
        self.load: dict[str, int] = {}  # ours
        self.far: dict[str, tuple[int, int]] = {}  # of other machines, and our limit
        self.tokens: dict[str, int] = {}
        for name, count in zip(NAMES, slots, strict=False):
            self.put(name, count, State.READY)

    @rule(
        name=st.sampled_from(NAMES),
        slots=st.integers(1, 4),
        state=st.sampled_from([State.READY, State.READY, State.SUSPECT]),
    )
    def put(self, name: str, slots: int, state: State) -> None:
        self.known[name] = instance(name, concurrency=slots, state=state)
        before = self.places.place(name)
        load = self.load.setdefault(name, 0)
        place = self.places.put(self.known[name], load, *self.far.setdefault(name, (0, slots)))
        assert before in (-1, place)
        self.policy.noted(place, self.tokens.setdefault(name, 0))

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: str) -> None:
        place = self.places.drop(name)
        assert (place >= 0) == (self.known.pop(name, None) is not None)
        if place >= 0:
            self.places.reuse(self.policy.gone(1 << place))

    @precondition(lambda self: self.known)
    @rule(data=st.data(), load=st.integers(0, 5), tokens=st.integers(0, 3))
    def note(self, data: st.DataObject, load: int, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.load[name], self.tokens[name] = load, tokens
        place = self.places.place(name)
        self.places.note(place, load, self.known[name].concurrency)
        self.policy.noted(place, tokens)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), elsewhere=st.integers(0, 3), limit=st.integers(0, 4))
    def share_out(self, data: st.DataObject, elsewhere: int, limit: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        self.far[name] = elsewhere, limit
        self.places.share_out(self.places.place(name), elsewhere, limit)

    @precondition(lambda self: self.ready())
    @rule(data=st.data())
    def the_least_busy_one_is_found(self, data: st.DataObject) -> None:
        among = data.draw(st.sets(st.sampled_from(self.ready()), min_size=1))
        mask = self.places.mask(among)
        assert {i.instance_id for i in self.places.each(mask)} == among
        chosen = self.places.at(self.places.least(mask)).instance_id
        assert chosen in among
        assert self.share(chosen) == min(map(self.share, among))
        assert min(1.0, self.places.least_share(mask)) == min(1.0, self.share(chosen))
        read = self.places.at(self.policy.pick(mask, KeyAsk("k"))).instance_id
        fewest = min(self.tokens[one] for one in among)
        assert self.tokens[read] == fewest
        assert self.share(read) == min(
            self.share(one) for one in among if self.tokens[one] == fewest
        )

    @precondition(lambda self: self.ready())
    @rule()
    def those_equally_busy_take_turns(self) -> None:
        least = min(map(self.share, self.ready()))
        equal = {one for one in self.ready() if self.share(one) == least}
        found = {self.places.at(self.places.least(self.places.ready)).instance_id for _ in equal}
        assert found == equal

    @invariant()
    def masks_say_what_the_list_says(self) -> None:
        if not hasattr(self, "places"):
            return
        ready = self.ready()
        assert {i.instance_id for i in self.places.each(self.places.ready)} == set(ready)
        assert (self.places.count, len(self.places)) == (len(ready), len(self.known))
        assert self.places.slots == sum(self.known[one].concurrency for one in ready)
        free = {one for one in ready if self.load[one] < self.far[one][1]}
        assert {i.instance_id for i in self.places.each(self.places.free)} == free

    def ready(self) -> list[str]:
        return sorted(one for one, view in self.known.items() if view.state is State.READY)

    def share(self, name: str) -> float:
        """Beyond all slots nobody is busier than full, when slots differ."""
        slots, load = self.known[name].concurrency, self.load[name] + self.far[name][0]
        if len({self.known[one].concurrency for one in self.ready()}) > 1:
            return min(1.0, load / slots)
        return load / slots


Stable.TestCase.settings = machine_settings(100, 40)
test_places_are_what_a_plain_list_is = Stable.TestCase
