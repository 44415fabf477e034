"""plan(): from wishes and facts to orders."""

import itertools

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostler.app.config import LifeConfig
from hostler.core.deployment import Deployment, Wish
from hostler.core.lifecycle import Instance, State
from hostler.core.model import WorkerType
from hostler.manager.launching import load_deadline_s
from hostler.manager.plan import Crashes, Drain, Forget, Launch, after_crash, plan

NOBODY: dict[tuple[str, int], Crashes] = {}


def wish(
    replicas: int = 1, *, process_generation: int = 1, wish: Wish = Wish.RUNNING
) -> Deployment:
    return Deployment(
        name="qwen",
        worker_type=WorkerType.LLM,
        engine="fake",
        replicas=replicas,
        wish=wish,
        process_generation=process_generation,
    )


def seen(
    state: State, *, replica: int = 0, generation: int = 1, epoch: int = 1, key: str = "qwen@llm"
) -> Instance:
    return Instance(
        instance_id=f"{replica}.{generation}.{epoch}.{state}",
        worker_key=key,
        model_name="qwen",
        replica=replica,
        state=state,
        epoch=epoch,
        generation=generation,
    )


def test_every_missing_replica_is_launched_once() -> None:
    assert plan([wish(2)], [seen(State.READY)], 0.0, NOBODY) == [
        Launch(worker_key="qwen@llm", replica=1)
    ]


@pytest.mark.parametrize(
    "state", [State.PENDING, State.FETCHING, State.STARTING, State.READY, State.SUSPECT]
)
def test_an_order_under_way_is_not_given_again(state: State) -> None:
    assert plan([wish()], [seen(state)], 0.0, NOBODY) == []


def test_a_stopped_wish_drains_what_lives_and_forgets_what_is_gone() -> None:
    living, gone = seen(State.READY), seen(State.FAILED, replica=1)
    actions = plan([wish(2, wish=Wish.STOPPED)], [living, gone], 0.0, NOBODY)
    assert [type(action) for action in actions] == [Drain, Forget]


def test_fewer_replicas_drain_the_ones_with_the_highest_numbers() -> None:
    three = [seen(State.READY, replica=replica) for replica in range(3)]
    (drain,) = plan([wish(2)], three, 0.0, NOBODY)
    assert isinstance(drain, Drain)
    assert drain.instance_id == three[2].instance_id


def test_a_failed_replica_is_replaced_after_its_backoff() -> None:
    failed = seen(State.FAILED)
    crashes = {("qwen@llm", 0): Crashes(at_s=(0.0,), next_try_s=5.0)}
    assert plan([wish()], [failed], 4.9, crashes) == []
    assert plan([wish()], [failed], 5.0, crashes) == [
        Launch(worker_key="qwen@llm", replica=0, replaces=failed.instance_id)
    ]


def test_a_verdict_is_not_tried_again() -> None:
    crashes = {("qwen@llm", 0): Crashes(at_s=(0.0,), verdict=True)}
    assert plan([wish()], [seen(State.FAILED)], 1e9, crashes) == []


def test_two_for_one_place_the_older_epoch_loses() -> None:
    older, newer = seen(State.READY, epoch=1), seen(State.READY, epoch=2)
    (drain,) = plan([wish()], [newer, older], 0.0, NOBODY)
    assert isinstance(drain, Drain)
    assert drain.instance_id == older.instance_id


def test_of_two_for_one_place_the_older_one_serves_until_the_newer_one_does() -> None:
    first, second = seen(State.READY, epoch=1), seen(State.READY, epoch=2)
    newest = seen(State.STARTING, epoch=3)
    (drain,) = plan([wish()], [first, second, newest], 0.0, NOBODY)
    assert isinstance(drain, Drain)
    assert drain.instance_id == first.instance_id
    adopted = seen(State.STARTING, epoch=1)
    two = [adopted, newest]
    assert plan([wish()], two, 0.0, NOBODY, unheard={i.instance_id for i in two}) == []
    (drain,) = plan([wish()], two, 0.0, NOBODY)  # it has not spoken, and now it is late
    assert isinstance(drain, Drain)
    assert drain.instance_id == adopted.instance_id


def test_a_renewal_starts_the_new_one_first_and_one_at_a_time() -> None:
    old = [seen(State.READY, replica=replica) for replica in range(2)]
    renewed = wish(2, process_generation=2)
    assert plan([renewed], old, 0.0, NOBODY) == [Launch(worker_key="qwen@llm", replica=0)]
    loading = [*old, seen(State.STARTING, generation=2, epoch=2)]
    assert plan([renewed], loading, 0.0, NOBODY) == []
    ready = [*old, seen(State.READY, generation=2, epoch=2)]
    first, *rest = plan([renewed], ready, 0.0, NOBODY)
    assert isinstance(first, Drain)
    assert first.instance_id == old[0].instance_id
    assert rest == []


def test_changes_in_a_row_never_make_a_third_process_for_a_place() -> None:
    """A change comes just as the new process of the one before is ready, its old one still there."""
    third = wish(process_generation=3)
    first, second = seen(State.READY), seen(State.READY, generation=2, epoch=2)
    assert plan([third], [first, second], 0.0, NOBODY) == [
        Drain(
            instance_id=first.instance_id,
            reason="a newer process has its place",
            is_followed=True,
        ),
        Launch(worker_key="qwen@llm", replica=0),
    ]


def test_while_two_old_processes_may_serve_no_third_is_started() -> None:
    both = [seen(State.SUSPECT), seen(State.STARTING, generation=2, epoch=2)]
    unheard = {both[1].instance_id}
    third = wish(process_generation=3)
    assert plan([third], both, 0.0, NOBODY, unheard=unheard) == []
    ready = [both[0], seen(State.READY, generation=2, epoch=2)]
    assert len(plan([third], ready, 0.0, NOBODY)) == 2


def test_instances_of_a_forgotten_wish_drain() -> None:
    (drain,) = plan([], [seen(State.READY)], 0.0, NOBODY)
    assert isinstance(drain, Drain)


def test_an_adopted_process_that_has_not_spoken_is_not_sent_away_by_a_change() -> None:
    renewed = wish(process_generation=2)
    silent = seen(State.STARTING, generation=1)
    new = seen(State.STARTING, generation=2, epoch=2)
    (drain,) = plan([renewed], [silent, new], 0.0, NOBODY)
    assert drain == Drain(instance_id=silent.instance_id, reason="changed before it served")
    unheard = {silent.instance_id}
    assert plan([renewed], [silent, new], 0.0, NOBODY, unheard=unheard) == []
    (launch,) = plan([renewed], [silent], 0.0, NOBODY, unheard=unheard)
    assert isinstance(launch, Launch)
    ready = msgspec.structs.replace(new, state=State.READY)
    (drain,) = plan([renewed], [silent, ready], 0.0, NOBODY, unheard=unheard)
    assert isinstance(drain, Drain)


STATES = st.sampled_from(list(State))
INSTANCES = st.lists(
    st.builds(
        lambda state, replica, generation, epoch: seen(
            state, replica=replica, generation=generation, epoch=epoch
        ),
        STATES,
        st.integers(0, 3),
        st.integers(1, 2),
        st.integers(1, 3),
    ),
    max_size=8,
    unique_by=lambda instance: instance.instance_id,
)


NUMBERS = itertools.count()


def carry_out(instances: list[Instance], actions: list[object]) -> list[Instance]:
    """What the hands would make of the orders at once."""
    left = {instance.instance_id: instance for instance in instances}
    for action in actions:
        match action:
            case Forget(instance_id=gone):
                left.pop(gone)
            case Drain(instance_id=draining):
                left[draining] = msgspec.structs.replace(left[draining], state=State.DRAINING)
            case Launch(replica=replica, replaces=replaced):
                if replaced:
                    left.pop(replaced)
                name = f"new{next(NUMBERS)}"
                new = seen(State.PENDING, replica=replica, generation=2, epoch=9)
                left[name] = msgspec.structs.replace(new, instance_id=name)
    return list(left.values())


@given(INSTANCES, st.integers(0, 4), st.sampled_from(list(Wish)))
def test_F36_planning_twice_orders_nothing_twice(
    instances: list[Instance], replicas: int, wished: Wish
) -> None:
    deployment = wish(replicas, process_generation=2, wish=wished)
    actions = plan([deployment], instances, 0.0, NOBODY)
    after = carry_out(instances, list(actions))
    again = plan([deployment], after, 0.0, NOBODY)
    assert not [action for action in again if action in actions]
    assert not [action for action in again if isinstance(action, Launch)] or any(
        instance.generation == 1 for instance in after
    )


@given(INSTANCES, st.integers(0, 4))
@example([seen(State.READY), seen(State.SUSPECT)], 1)
def test_F36_whatever_is_found_the_plan_leads_to_the_wish(
    instances: list[Instance], replicas: int
) -> None:
    deployment = wish(replicas, process_generation=2)
    for _ in range(40):
        actions = plan([deployment], instances, 0.0, NOBODY)
        instances = [_next(instance) for instance in carry_out(instances, list(actions))]
    ready = [i for i in instances if i.state is State.READY and i.generation == 2]
    assert sorted(i.replica for i in ready) == list(range(replicas))
    assert len(instances) == len(ready)


def test_an_instance_whose_machine_is_emptied_serves_until_another_one_does() -> None:
    old, new = seen(State.READY), seen(State.STARTING, epoch=2)
    leaving = {old.instance_id}
    (launch,) = plan([wish()], [old], 0.0, NOBODY, leaving=leaving)
    assert isinstance(launch, Launch)
    assert plan([wish()], [old, new], 0.0, NOBODY, leaving=leaving) == []
    ready = msgspec.structs.replace(new, state=State.READY)
    (drain,) = plan([wish()], [old, ready], 0.0, NOBODY, leaving=leaving)
    assert drain == Drain(
        instance_id=old.instance_id, reason="replaced by a newer process", is_followed=True
    )


def test_an_instance_that_never_served_leaves_its_machine_at_once() -> None:
    loading = seen(State.STARTING)
    drain, launch = plan([wish()], [loading], 0.0, NOBODY, leaving={loading.instance_id})
    assert drain == Drain(instance_id=loading.instance_id, reason="its host is to be emptied")
    assert isinstance(launch, Launch)


@given(st.integers(1, 4), st.sets(st.integers(0, 3)))
def test_emptying_a_machine_never_leaves_a_place_without_one_that_serves(
    replicas: int, there: set[int]
) -> None:
    instances = [seen(State.READY, replica=replica) for replica in range(replicas)]
    leaving = {one.instance_id for one in instances if one.replica in there}
    deployment = wish(replicas)
    for _ in range(40):
        actions = plan([deployment], instances, 0.0, NOBODY, leaving=leaving)
        launches = [one for one in actions if isinstance(one, Launch)]
        assert len(launches) <= 1, "one by one"
        left = [
            msgspec.structs.replace(one, generation=1)
            for one in carry_out(instances, list(actions))
        ]
        serving = {one.replica for one in left if one.state is State.READY}
        assert serving == set(range(replicas))
        instances = [_next(one) for one in left]
    assert not leaving & {one.instance_id for one in instances}
    assert len(instances) == replicas


@given(INSTANCES, st.integers(0, 2), st.sampled_from(list(Wish)), st.data())
def test_who_was_brought_by_hand_is_neither_replaced_nor_counted(
    instances: list[Instance], replicas: int, wished: Wish, data: st.DataObject
) -> None:
    ids = [one.instance_id for one in instances]
    pinned = set(data.draw(st.lists(st.sampled_from(ids), unique=True))) if ids else set()
    deployment = wish(replicas, process_generation=2, wish=wished)
    own = [one for one in instances if one.instance_id not in pinned]
    actions = plan([deployment], instances, 0.0, NOBODY, pinned=pinned)
    of_pinned = [one for one in actions if getattr(one, "instance_id", "") in pinned]
    assert [one for one in actions if one not in of_pinned] == plan([deployment], own, 0.0, NOBODY)
    gone = {State.FAILED, State.STOPPED}
    for one in instances:
        if one.instance_id in pinned and one.state not in gone and wished is Wish.RUNNING:
            assert not [a for a in of_pinned if getattr(a, "instance_id", "") == one.instance_id]
        elif one.instance_id in pinned and one.state is State.READY:
            drain = Drain(instance_id=one.instance_id, reason="it is not wished any more")
            assert drain in of_pinned


def _next(instance: Instance) -> Instance:
    """Every process does what it was started for."""
    moves = {State.DRAINING: State.STOPPED, State.SUSPECT: State.READY}
    on_their_way = (State.PENDING, State.FETCHING, State.STARTING)
    state = State.READY if instance.state in on_their_way else instance.state
    return msgspec.structs.replace(instance, state=moves.get(instance.state, state))


def test_F12_crashes_back_off_and_end_in_a_verdict() -> None:
    life = LifeConfig()
    crashes, now_s, waits = Crashes(), 0.0, []
    for _ in range(life.crash_limit):
        crashes = after_crash(crashes, now_s, life, jitter=1.0)
        waits.append(crashes.next_try_s - now_s)
        now_s = crashes.next_try_s
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert crashes.verdict


def test_F12_crashes_outside_the_window_are_forgiven() -> None:
    life = LifeConfig()
    crashes = Crashes(at_s=(0.0, 1.0, 2.0, 3.0))
    later = after_crash(crashes, life.crash_window_s + 4.0, life, jitter=0.0)
    assert not later.verdict
    assert len(later.at_s) == 1


def test_the_backoff_is_bounded() -> None:
    life = LifeConfig(crash_limit=100)
    crashes = Crashes()
    waits = []
    for step in itertools.count():
        if step == 20:
            break
        crashes = after_crash(crashes, float(step), life, jitter=1.0)
        waits.append(crashes.next_try_s - step)
    assert max(waits) == life.backoff_last_s


def test_an_old_process_that_never_served_leaves_at_once() -> None:
    loading = seen(State.FETCHING, generation=1)
    launch, *rest = sorted(
        plan([wish(process_generation=2)], [loading], 0.0, NOBODY), key=lambda a: type(a).__name__
    )[::-1]
    assert isinstance(launch, Launch)
    assert [drain.instance_id for drain in rest if isinstance(drain, Drain)] == [
        loading.instance_id
    ]


def test_without_memory_for_two_the_old_one_drains_and_then_the_new_one_starts() -> None:
    old = [seen(State.READY, replica=replica) for replica in range(2)]
    renewed, cramped = wish(2, process_generation=2), {"qwen@llm"}
    (drain,) = plan([renewed], old, 0.0, NOBODY, cramped)
    assert isinstance(drain, Drain)
    assert drain.instance_id == old[0].instance_id
    draining = [msgspec.structs.replace(old[0], state=State.DRAINING), old[1]]
    assert plan([renewed], draining, 0.0, NOBODY, cramped) == []
    assert plan([renewed], [old[1]], 0.0, NOBODY, cramped) == [
        Launch(worker_key="qwen@llm", replica=0)
    ]
    loading = [seen(State.STARTING, generation=2, epoch=2), old[1]]
    assert plan([renewed], loading, 0.0, NOBODY, cramped) == []
    ready = [seen(State.READY, generation=2, epoch=2), old[1]]
    (drain,) = plan([renewed], ready, 0.0, NOBODY, cramped)
    assert isinstance(drain, Drain)
    assert drain.instance_id == old[1].instance_id


def test_F13_a_large_model_has_longer_to_load() -> None:
    life = LifeConfig(start_timeout_s=600, load_bytes_per_s=50_000_000)
    assert load_deadline_s(life, 0) == 600
    assert load_deadline_s(life, 140_000_000_000) == 600 + 2800
