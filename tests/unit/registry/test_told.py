"""What is told step by step is what the registry has, however the steps are cut, lost or mixed up."""

import asyncio
from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HeartbeatConfig
from hostler.core.change import Change
from hostler.core.lifecycle import ALIVE, Instance, Signal, State
from hostler.core.model import WorkerType
from hostler.core.snapshot import KeyView, ModelView, Snapshot
from hostler.registry import told as told_module
from hostler.registry.expected import Expected
from hostler.registry.mirror import Follower, Gap
from hostler.registry.registry import Registry
from hostler.registry.told import Told
from hostler.testing.clock import ManualClock

NAMES = ("m", "n", "o")
ORDERS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 5), st.sampled_from(NAMES)),
    st.tuples(st.just("post"), st.integers(0, 5), st.sampled_from(list(Signal))),
    st.tuples(st.just("forget"), st.integers(0, 5), st.just(None)),
    st.tuples(st.just("describe"), st.permutations(NAMES), st.integers(0, 3)),
    st.tuples(st.just("keys"), st.integers(0, 3), st.just(None)),
)


def model(name: str, wanted: int = 1) -> ModelView:
    return ModelView(name=name, worker_type=WorkerType.LLM, engine="fake", wanted=wanted)


def registry(clock: ManualClock | None = None, incarnation: int = 1) -> Registry:
    return Registry(HeartbeatConfig(), clock or ManualClock(), incarnation=incarnation)


def obey(ours: Registry, order: tuple[str, object, object]) -> None:
    """Change something, if it can be changed."""
    kind, what, how = order
    match kind:
        case "add" if ours.record(f"i{what}") is None:
            one = Instance(instance_id=f"i{what}", worker_key=f"{how}@llm", model_name=str(how))
            ours.add(one, Expected(worker_type=WorkerType.LLM, engine="fake"))
        case "post":
            with suppress(Exception):  # an order that this state does not take
                ours.post(f"i{what}", how)  # type: ignore[arg-type]
        case "forget":
            ours.forget(f"i{what}")
        case "describe":
            names = list(what)[: int(how)]  # type: ignore[call-overload]
            ours.describe([model(name, wanted=len(names)) for name in names])
        case "keys":
            keys = [KeyView(key_id=f"k{n}", secret_hash="", scopes=()) for n in range(int(what))]  # type: ignore[call-overload]
            ours.set_keys(keys)


def lines(data: bytes) -> list[Change]:
    return [msgspec.json.decode(line, type=Change) for line in data.splitlines()]


def resumed(ours: Registry, follower: Follower) -> bytes:
    """What a watch tells one who comes back."""
    ours.told.step()
    incarnation, _, version = follower.place.partition(".")
    return ours.told.line_since(int(version) if int(incarnation) == ours.incarnation else 0)


@given(st.lists(st.lists(ORDERS, max_size=4), max_size=14), st.data())
@settings(max_examples=150, deadline=None)
def test_F78_a_mirror_of_steps_in_any_order_is_the_registry_s_snapshot(
    batches: list[list[tuple[str, object, object]]], data: st.DataObject
) -> None:
    ours, follower = registry(), Follower()
    ours.describe([model("m")])
    seen, said = {ours.version: ours.snapshot}, [*lines(ours.told.whole_line(3))]
    for batch in batches:
        before = ours.version
        for order in batch:
            obey(ours, order)
        if ours.version != before:
            said += lines(ours.told.line_since(before))
            seen[ours.version] = ours.snapshot
            said += lines(ours.told.whole_line(3)) if data.draw(st.booleans()) else []
    for change in data.draw(st.permutations(said + data.draw(st.lists(st.sampled_from(said))))):
        held = follower.picture.version
        with suppress(Gap):
            follower.take(change)
        assert follower.picture.version >= held  # it never goes back
        if follower.picture.version:  # and knows what the controller knew at some time
            assert follower.picture.snapshot() == seen[follower.picture.version]
    for change in lines(resumed(ours, follower)):
        follower.take(change)
    assert follower.picture.snapshot() == ours.snapshot
    assert follower.place == f"1.{ours.version}"


@given(st.lists(st.lists(ORDERS, max_size=4), max_size=10))
@settings(max_examples=50, deadline=None)
def test_counts_that_are_kept_are_the_counts(
    batches: list[list[tuple[str, object, object]]],
) -> None:
    ours = registry()
    for batch in batches:
        for order in batch:
            obey(ours, order)
        for view in ours.snapshot.models:
            states = [
                r.instance.state for r in ours.records() if r.instance.model_name == view.name
            ]
            assert dict(view.states) == {s.value: states.count(s) for s in set(states)}
            assert {r.instance.instance_id for r in ours.of_model(view.name)} == {
                r.instance.instance_id for r in ours.records() if r.instance.model_name == view.name
            }
        assert {i.instance_id for i in ours.snapshot.instances} == {
            r.instance.instance_id for r in ours.records() if r.instance.state in ALIVE
        }


def test_a_new_controller_s_snapshot_is_taken_whole_and_told_on_as_what_changed() -> None:
    old, new, follower = registry(), registry(incarnation=2), Follower()
    for one in (old, new):
        one.describe([model("m"), model("n")])
    obey(old, ("add", 1, "m"))
    old.post("i1", Signal.LAUNCH)
    old.snapshot  # noqa: B018 - a version of its own
    for change in lines(resumed(old, follower)):
        follower.take(change)
    (whole,) = lines(resumed(new, follower))
    taken = follower.take(whole)
    assert taken is not None
    assert (taken.gone, [m.name for m in taken.models]) == (("i1",), ["m"])
    assert follower.picture.snapshot() == new.snapshot
    for late in lines(old.told.whole_line(3)):
        assert follower.take(late) is None


def test_who_has_been_away_for_too_long_is_told_everything() -> None:
    ours, follower = registry(), Follower()
    ours.describe([model("m")])
    for change in lines(resumed(ours, follower)):
        follower.take(change)
    for number in range(told_module.STEPS_MAX + 5):
        ours.set_keys([KeyView(key_id=f"k{number}", secret_hash="", scopes=())])
        assert ours.version == number + 2 or number == 0
    assert len(ours.told._steps) == told_module.STEPS_MAX
    (whole,) = lines(resumed(ours, follower))
    assert whole.since is None
    follower.take(whole)
    assert follower.picture.snapshot() == ours.snapshot


def test_a_step_that_does_not_add_up_is_followed_by_a_whole_snapshot() -> None:
    ours, follower = registry(), Follower()
    ours.describe([model("m")])
    for change in lines(resumed(ours, follower)):
        follower.take(change)
    obey(ours, ("add", 1, "m"))
    ours.post("i1", Signal.LAUNCH)
    before = ours.version - 1
    (step,) = lines(ours.told.line_since(before))
    follower.take(msgspec.structs.replace(step, count=7))
    assert follower.place == "0.0"
    for change in lines(resumed(ours, follower)):
        follower.take(change)
    assert follower.picture.snapshot() == ours.snapshot
    assert follower.place == f"1.{ours.version}"


def test_a_line_is_made_once_however_many_watch() -> None:
    ours = registry()
    ours.describe([model("m")])
    version = ours.version
    obey(ours, ("add", 1, "m"))
    ours.snapshot  # noqa: B018
    assert ours.told.whole_line(3) is ours.told.whole_line(3)
    step = ours.told._steps[-1]
    ours.told.line_since(version)
    made = step.lines[None]
    ours.told.line_since(version)
    assert step.lines == {None: made}
    assert b'"/run/' not in ours.told.line_since(version, 8102)
    assert len(step.lines) == 2
    old = msgspec.json.decode(ours.told.whole_line(2), type=Snapshot)
    assert (old.protocol, old.instances) == (2, ours.snapshot.instances)


def test_changes_in_a_row_are_one_version_and_the_first_is_told_at_once() -> None:
    async def main() -> None:
        ours = registry()
        ours.describe([model("m")])
        await ours.changed(0)
        first = ours.told.picture.version
        await asyncio.sleep(0.05)
        seen = []
        for number in range(200):
            obey(ours, ("add", number, "m"))
            ours.post(f"i{number}", Signal.LAUNCH)
            if not number:
                await asyncio.wait_for(ours.changed(first), 1)
                assert len(ours.told.picture.instances) == 1
            await asyncio.sleep(0)
            seen.append(ours.told.picture.version)
        await ours.changed(seen[-1])
        assert len(ours.told.picture.instances) == 200
        assert ours.told.picture.version < first + 100

    asyncio.run(main())


def test_nothing_that_is_not_other_makes_a_version() -> None:
    ours = registry()
    ours.describe([model("m")])
    version = ours.version
    ours.describe([model("m")])
    ours.set_keys([])
    obey(ours, ("add", 1, "m"))
    obey(ours, ("forget", 1, None))
    assert ours.version == version
    assert isinstance(ours.told, Told)
    assert State.READY not in {i.state for i in ours.instances()}
