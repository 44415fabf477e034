"""A yard places as `place` does, whatever was placed before."""

import random

import msgspec

from hostler.core.hosts import Standing
from hostler.manager.placement import Machine, Need, Unplaced, place
from hostler.manager.yard import Yard


def machine(dice: random.Random, number: int) -> Machine:
    return Machine(
        host_id=f"h{number}" if number else "",
        name=f"name{number % 7}" if number else "localhost",
        standing=dice.choice([Standing.ALIVE, Standing.ALIVE, *Standing]),
        engines=dice.choice([None, ("fake",), ("fake", "onnx"), ("onnx",)]),
        labels=dice.choice([{}, {"rack": "a"}, {"rack": "b"}]),
        free_bytes=dice.choice([None, 0, *(dice.randrange(40) for _ in range(4))]),
        coming_bytes=dice.choice([0, 0, dice.randrange(50)]),
        instances=dice.randrange(4),
    )


def need(dice: random.Random) -> Need:
    return Need(
        engine=dice.choice(["fake", "onnx", ""]),
        host=dice.choice(["", "", "", "h3", "name2", "localhost"]),
        labels=dice.choice([{}, {"rack": "a"}]),
        memory_bytes=dice.choice([None, dice.randrange(1, 20)]),
    )


def test_a_yard_places_as_place_does() -> None:
    dice, placed = random.Random(7), 0
    for _ in range(200):
        machines = [machine(dice, number) for number in range(dice.randrange(1, 12))]
        yard = Yard(machines)
        there = {one.host_id: one for one in machines}
        for _ in range(12):
            asked = need(dice)
            known = {
                host_id: msgspec.structs.replace(
                    there[host_id],
                    mine=dice.randrange(3),
                    was=dice.random() < 0.3,
                    failed=int(dice.random() < 0.3),
                )
                for host_id in dice.sample(sorted(there), dice.randrange(len(there) + 1))
            }
            found = yard.place(asked, known)
            assert found == place(asked, [known.get(i, one) for i, one in there.items()])
            if not isinstance(found, Unplaced):
                placed += 1
                taken = asked.memory_bytes or 0
                before = there[found.host_id]
                there[found.host_id] = msgspec.structs.replace(
                    before,
                    coming_bytes=before.coming_bytes + taken,
                    instances=before.instances + 1,
                )
                yard.note_placed(found.host_id, taken)
    assert placed > 500


def test_many_of_unknown_size_are_spread_over_all_machines() -> None:
    yard, chosen = Yard([Machine(host_id=f"h{n}", free_bytes=n << 30) for n in range(10)]), []
    for _ in range(20):
        found = yard.place(Need(engine="fake"), {})
        assert isinstance(found, Machine)
        chosen.append(found.host_id)
        yard.note_placed(found.host_id, 0)
    assert {chosen.count(one) for one in chosen} == {2}


def test_many_placings_look_at_few_machines() -> None:
    yard = Yard([Machine(host_id=f"h{n:04}", free_bytes=100) for n in range(1000)])
    asked = Need(engine="fake", memory_bytes=10)
    chosen = []
    for _ in range(2000):
        found = yard.place(asked, {})
        assert isinstance(found, Machine)
        chosen.append(found.host_id)
        yard.note_placed(found.host_id, 10)
    assert len(set(chosen)) == 1000, "the one with the most left, each time"
