"""place(): the machine for an instance, or what each of them lacks."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.hosts import Standing
from hostler.manager.placement import Machine, Need, Unplaced, place, what_lacks

GIB = 1 << 30
HERE = Machine(engines=("fake",))
NEED = Need(engine="fake")


def machine(name: str, **more: object) -> Machine:
    return Machine(host_id=f"id-{name}", name=name, **{"engines": ("fake",), **more})  # type: ignore[arg-type]


def chosen(need: Need, *machines: Machine) -> str:
    found = place(need, machines)
    assert isinstance(found, Machine), found
    return found.name


def test_the_controllers_own_machine_is_first_among_equals() -> None:
    assert chosen(NEED, machine("b"), HERE, machine("c")) == "localhost"


def test_the_one_with_the_fewest_instances_of_the_model_is_chosen() -> None:
    busy = Machine(engines=("fake",), mine=1)
    assert chosen(NEED, busy, machine("b", mine=2), machine("c")) == "c"


def test_then_the_one_with_the_most_memory_left() -> None:
    b = machine("b", free_bytes=9 * GIB, coming_bytes=5 * GIB)
    assert chosen(NEED, b, machine("c", free_bytes=6 * GIB)) == "c"


def test_of_equal_machines_the_one_with_the_fewest_instances_is_chosen() -> None:
    need = Need(engine="fake", memory_bytes=GIB)
    a = machine("a", free_bytes=9 * GIB, instances=2)
    assert chosen(need, a, machine("b", free_bytes=9 * GIB, instances=1)) == "b"
    assert chosen(need, a, machine("b", free_bytes=8 * GIB)) == "a"
    assert chosen(need, a, machine("b", free_bytes=9 * GIB, instances=2)) == "a"


def test_what_takes_nobody_knows_how_much_goes_where_the_fewest_instances_are() -> None:
    a = machine("a", free_bytes=9 * GIB, instances=1)
    assert chosen(NEED, a, machine("b", free_bytes=8 * GIB)) == "b"
    assert chosen(NEED, a, machine("b", free_bytes=8 * GIB, instances=1)) == "a"


def test_a_machine_where_it_failed_last_comes_after_others() -> None:
    assert chosen(NEED, Machine(engines=("fake",), failed=1), machine("c")) == "c"


def test_a_replacement_stays_where_its_files_are_unless_copies_crowd_there() -> None:
    assert chosen(NEED, HERE, machine("b", was=True), machine("c")) == "b"
    assert chosen(NEED, HERE, machine("b", was=True, mine=1), machine("c", mine=1)) == "localhost"
    assert chosen(NEED, machine("b", was=True, failed=1), machine("c")) == "c"


@pytest.mark.parametrize("by", ["c", "id-c"])
def test_a_named_machine_is_the_only_one(by: str) -> None:
    need = Need(engine="fake", host=by)
    assert chosen(need, HERE, machine("b"), machine("c", mine=5)) == "c"


def test_a_machine_that_nobody_knows_is_waited_for() -> None:
    found = place(Need(engine="fake", host="x"), [HERE, machine("b")])
    assert found == Unplaced(reason="waits for a machine: no host 'x' has joined (there are: b)")


@pytest.mark.parametrize(
    ("of", "need", "lacks"),
    [
        (machine("b", standing=Standing.SUSPECT), NEED, "is silent"),
        (machine("b", standing=Standing.LOST), NEED, "is silent"),
        (machine("b", standing=Standing.DRAINING), NEED, "is being drained"),
        (machine("b", standing=Standing.LEFT), NEED, "has left"),
        (machine("b", engines=("onnx",)), NEED, "lacks the engine fake"),
        (machine("b", engines=None), NEED, ""),
        (machine("b"), Need(engine="fake", labels={"gpu": "a100"}), "lacks the label gpu=a100"),
        (
            machine("b", labels={"gpu": "t4"}),
            Need(engine="fake", labels={"gpu": "a100"}),
            "lacks the label gpu=a100 (it has gpu=t4)",
        ),
        (
            machine("b", free_bytes=int(2.1 * GIB)),
            Need(engine="fake", memory_bytes=4 * GIB),
            "has 2.1 GiB free, 4.0 GiB are needed",
        ),
        (machine("b", free_bytes=None), Need(engine="fake", memory_bytes=4 * GIB), ""),
        (machine("b", free_bytes=1), NEED, ""),
    ],
)
def test_what_a_machine_lacks_is_said(of: Machine, need: Need, lacks: str) -> None:
    assert what_lacks(need, of) == lacks


def test_nobody_fits_and_each_says_why() -> None:
    need = Need(engine="vllm", memory_bytes=4 * GIB)
    b, c = machine("b"), machine("c", engines=("vllm",), free_bytes=GIB)
    assert place(need, [b, c]) == Unplaced(
        reason="waits for a machine: b lacks the engine vllm; c has 1.0 GiB free, 4.0 GiB are needed"
    )


def test_many_machines_make_no_endless_reason() -> None:
    found = place(Need(engine="vllm"), [machine(f"m{number}") for number in range(1000)])
    assert isinstance(found, Unplaced)
    assert "and 988 more" in found.reason
    assert len(found.reason) < 600


NAMES = st.sampled_from(["b", "c", "d"])
ENGINES = st.sampled_from(["fake", "onnx"])
LABELS = st.dictionaries(st.sampled_from(["gpu", "zone"]), st.sampled_from(["x", "y"]))
SIZES = st.one_of(st.none(), st.integers(0, 8))
MACHINES = st.lists(
    st.builds(
        Machine,
        host_id=NAMES.map(lambda name: f"id-{name}"),
        name=NAMES,
        standing=st.sampled_from(list(Standing)),
        engines=st.one_of(st.none(), st.lists(ENGINES).map(tuple)),
        labels=LABELS,
        free_bytes=SIZES,
        coming_bytes=st.integers(0, 4),
        mine=st.integers(0, 3),
        failed=st.integers(0, 1),
    ),
    max_size=6,
    unique_by=lambda one: one.host_id,
)
NEEDS = st.builds(
    Need, engine=ENGINES, host=st.one_of(st.just(""), NAMES), labels=LABELS, memory_bytes=SIZES
)


@given(NEEDS, MACHINES)
def test_a_machine_is_chosen_exactly_when_one_lacks_nothing(
    need: Need, machines: list[Machine]
) -> None:
    meant = [one for one in machines if need.host in ("", one.host_id, one.name)]
    able = [one for one in meant if not what_lacks(need, one)]
    found = place(need, machines)
    if isinstance(found, Unplaced):
        assert not able
        assert all(one.name in found.reason for one in meant)
        return
    assert found in able
    assert found.standing is Standing.ALIVE
    assert found.engines is None or need.engine in found.engines
    assert all(found.labels.get(key) == value for key, value in need.labels.items())
    assert found.mine == min(one.mine for one in able)


@given(NEEDS, MACHINES, st.randoms())
def test_the_order_of_the_machines_decides_nothing(
    need: Need, machines: list[Machine], shuffles: Random
) -> None:
    other = list(machines)
    shuffles.shuffle(other)
    assert type(place(need, machines)) is type(place(need, other))
    if isinstance(found := place(need, machines), Machine):
        assert found == place(need, other)
