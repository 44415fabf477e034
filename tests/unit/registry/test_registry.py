"""The registry: what workers say, what is believed, what is published."""

import asyncio
import hashlib

import msgspec
import pytest

from hostler.app.config import HeartbeatConfig
from hostler.core.errors import Conflict, StaleEpoch, UnknownInstance
from hostler.core.fleet import Beat, Departure, Registration
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.snapshot import Endpoint, ModelView
from hostler.registry.expected import Expected
from hostler.registry.liveness import judge_heartbeat, own_pause_s
from hostler.registry.registry import Registry, vouch
from hostler.testing.clock import ManualClock

SECRET = "s3"
BEATS = HeartbeatConfig()


def expected(secret: str = SECRET) -> Expected:
    return Expected(
        worker_type=WorkerType.LLM,
        engine="fake",
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        concurrency=4,
    )


def launched(registry: Registry, instance_id: str = "a", epoch: int = 1) -> None:
    registry.add(
        Instance(instance_id=instance_id, worker_key="qwen@llm", model_name="qwen", epoch=epoch),
        expected(),
    )
    registry.post(instance_id, Signal.LAUNCH)


def registration(instance_id: str = "a", epoch: int = 1, secret: str = SECRET) -> Registration:
    return Registration(
        instance_id=instance_id,
        epoch=epoch,
        secret=secret,
        pid=7,
        endpoint=Endpoint(socket=f"/run/{instance_id}.sock"),
        metadata=ModelMetadata(model="qwen", context_length=4096),
    )


def beat(seq: int = 1, *, instance_id: str = "a", epoch: int = 1, engine_ok: bool = True) -> Beat:
    return Beat(instance_id=instance_id, epoch=epoch, secret=SECRET, seq=seq, engine_ok=engine_ok)


def state_of(registry: Registry, instance_id: str = "a") -> State:
    record = registry.record(instance_id)
    assert record is not None
    return record.instance.state


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(clock: ManualClock) -> Registry:
    registry = Registry(BEATS, clock, incarnation=5)
    registry.describe([ModelView(name="qwen", worker_type=WorkerType.LLM, engine="fake")])
    return registry


def test_a_registration_makes_a_launched_instance_ready(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    assert state_of(registry) is State.READY
    (view,) = registry.snapshot.instances
    assert view.endpoint.socket == "/run/a.sock"
    assert registry.snapshot.models[0].states == (("ready", 1),)
    assert registry.snapshot.models[0].context_length == 4096


def test_F30_a_beat_alone_never_makes_an_instance_ready(registry: Registry) -> None:
    launched(registry)
    answer = registry.beat(beat())
    assert not answer.registered
    assert state_of(registry) is State.STARTING


def test_F30_an_unknown_instance_is_told_so(registry: Registry) -> None:
    with pytest.raises(UnknownInstance):
        registry.beat(beat(instance_id="stranger"))


def test_F31_a_wrong_secret_changes_nothing(registry: Registry) -> None:
    launched(registry)
    with pytest.raises(Conflict):
        registry.register(registration(secret="guess"))
    assert state_of(registry) is State.STARTING


def test_an_older_epoch_is_told_that_it_is_stale(registry: Registry) -> None:
    launched(registry, epoch=4)
    with pytest.raises(StaleEpoch):
        registry.register(registration(epoch=3))
    assert state_of(registry) is State.STARTING


def test_a_heartbeat_in_flight_during_a_stop_revives_nobody(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    registry.post("a", Signal.DRAIN)
    registry.beat(beat())
    assert state_of(registry) is State.DRAINING
    registry.post("a", Signal.DRAINED)
    with pytest.raises(UnknownInstance):
        registry.beat(beat(2))
    assert state_of(registry) is State.STOPPED


def test_a_replayed_beat_is_no_sign_of_life(registry: Registry, clock: ManualClock) -> None:
    launched(registry)
    registry.register(registration())
    registry.beat(beat(7))
    heard = registry.record("a")
    clock.advance(2.0)
    registry.beat(beat(7))
    assert heard is not None
    assert heard.heard_at_s == clock() - 2.0


def test_an_engine_that_fails_its_probe_is_suspect_until_it_answers(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    registry.beat(beat(1, engine_ok=False))
    assert state_of(registry) is State.SUSPECT
    registry.beat(beat(2))
    assert state_of(registry) is State.READY


def test_a_departure_fails_an_instance_that_was_not_asked_to_leave(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    registry.depart(Departure(instance_id="a", epoch=1, secret=SECRET, reason="out of memory"))
    record = registry.record("a")
    assert record is not None
    assert record.instance.state is State.FAILED
    assert record.instance.reason == "out of memory"


def test_every_change_is_a_newer_version_of_an_immutable_snapshot(registry: Registry) -> None:
    before = registry.snapshot
    launched(registry)
    after = registry.snapshot
    assert after.version > before.version
    assert after.incarnation == before.incarnation == 5
    assert before.instances == ()


def test_instances_without_a_process_are_not_routable(registry: Registry) -> None:
    registry.add(Instance(instance_id="p", worker_key="qwen@llm", model_name="qwen"), expected())
    assert registry.snapshot.instances == ()
    assert registry.snapshot.models[0].loading


def test_F25_nobody_is_told_of_a_half_adopted_fleet(registry: Registry) -> None:
    async def main() -> None:
        for instance_id in ("a", "b"):
            registry.add(
                Instance(instance_id=instance_id, worker_key="qwen@llm", model_name="qwen"),
                expected(),
                adopted=True,
            )
            registry.post(instance_id, Signal.LAUNCH)
        waiting = asyncio.ensure_future(registry.changed(-1))
        registry.register(registration("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
        registry.register(registration("b"))
        await asyncio.wait_for(waiting, 1)
        assert [view.state for view in registry.snapshot.instances] == [State.READY, State.READY]

    asyncio.run(main())


def test_F25_an_adopted_worker_that_died_is_not_waited_for(registry: Registry) -> None:
    registry.add(
        Instance(instance_id="a", worker_key="qwen@llm", model_name="qwen"),
        expected(),
        adopted=True,
    )
    registry.post("a", Signal.LAUNCH)
    assert registry.unheard
    registry.post("a", Signal.EXITED)
    assert not registry.unheard


def test_F25_nobody_is_told_before_a_given_server_is_known(registry: Registry) -> None:
    async def main() -> None:
        registry.describe([], given=["given@llm#0"])
        waiting = asyncio.ensure_future(registry.changed(-1))
        launched(registry)
        await asyncio.sleep(0)
        assert not waiting.done()
        registry.settle("another@llm#0")
        await asyncio.sleep(0)
        assert not waiting.done()
        registry.settle("given@llm#0")
        await asyncio.wait_for(waiting, 1)
        assert len(registry.snapshot.instances) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("silence_s", "signal"),
    [(2.4, Signal.SEEN), (2.5, Signal.LATE), (29.9, Signal.LATE), (30.0, Signal.LOST)],
)
def test_silence_is_judged_at_its_bounds(silence_s: float, signal: Signal) -> None:
    assert judge_heartbeat(silence_s, BEATS) is signal


@pytest.mark.parametrize(("since_s", "paused_s"), [(0.25, 0.0), (1.0, 0.0), (20.25, 20.0)])
def test_F33_a_checker_that_did_not_run_blames_nobody(since_s: float, paused_s: float) -> None:
    assert own_pause_s(since_s, 0.25, BEATS) == paused_s


def test_F29_a_second_process_cannot_register_as_the_first(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    before = registry.snapshot
    other = msgspec.structs.replace(
        registration(), pid=8, endpoint=Endpoint(socket="/run/thief.sock")
    )
    with pytest.raises(Conflict):
        registry.register(other)
    assert registry.snapshot is before
    registry.register(registration())  # its own again is nothing new
    assert state_of(registry) is State.READY


def fleet_of(registry: Registry, count: int) -> list[str]:
    names = [f"w{number}" for number in range(count)]
    for name in names:
        launched(registry, name)
        registry.register(registration(name))
    return names


def pass_time(registry: Registry, clock: ManualClock, seconds: float, beating: list[str]) -> None:
    """Let time pass as the registry sees it: looks four times a second, a beat of some each second."""
    for step in range(int(seconds * 4)):
        clock.advance(0.25)
        if step % 4 == 0:
            for name in beating:
                registry.beat(beat(int(clock() * 10), instance_id=name))
        registry.judge()


def test_a_worker_that_falls_silent_alone_is_suspect_then_lost(
    registry: Registry, clock: ManualClock
) -> None:
    *others, silent = fleet_of(registry, 4)
    pass_time(registry, clock, 3, others)
    assert state_of(registry, silent) is State.SUSPECT
    pass_time(registry, clock, 28, others)
    assert state_of(registry, silent) is State.FAILED
    assert {state_of(registry, name) for name in others} == {State.READY}


def test_F23_a_silent_worker_whose_engine_answers_is_neither_suspect_nor_lost(
    registry: Registry, clock: ManualClock
) -> None:
    *others, silent = fleet_of(registry, 4)
    for _ in range(400):
        pass_time(registry, clock, 1, others)
        vouch(registry, silent, clock())
        assert state_of(registry, silent) is State.READY


def test_F24_when_most_fall_silent_at_once_nobody_is_given_up(
    registry: Registry, clock: ManualClock
) -> None:
    first, *others = fleet_of(registry, 5)
    pass_time(registry, clock, 200, [first])
    assert {state_of(registry, name) for name in (first, *others)} == {State.READY}
    pass_time(registry, clock, 101, [first])  # but not for ever
    assert {state_of(registry, name) for name in others} == {State.FAILED}
    assert state_of(registry, first) is State.READY


def test_F24_the_first_workers_that_are_heard_after_a_mass_loss_give_the_others_time(
    registry: Registry, clock: ManualClock
) -> None:
    *soon, late, never = fleet_of(registry, 5)
    pass_time(registry, clock, 200, [])
    pass_time(registry, clock, 20, soon)
    assert {state_of(registry, name) for name in (late, never)} == {State.SUSPECT}
    pass_time(registry, clock, 9, [*soon, late])
    assert state_of(registry, late) is State.READY
    assert state_of(registry, never) is State.FAILED


def test_F24_half_of_them_are_no_mass(registry: Registry, clock: ManualClock) -> None:
    names = fleet_of(registry, 4)
    pass_time(registry, clock, 31, names[:2])
    assert [state_of(registry, name) for name in names[2:]] == [State.FAILED] * 2


def test_F24_an_engine_known_to_be_silent_is_given_up_in_a_mass_as_well(
    registry: Registry, clock: ManualClock
) -> None:
    told, *silent = fleet_of(registry, 4)
    for number in range(30):
        registry.beat(beat(number + 1, instance_id=told, engine_ok=False))
        pass_time(registry, clock, 1, [])
    assert state_of(registry, told) is State.FAILED
    assert {state_of(registry, name) for name in silent} == {State.READY}


def test_F33_a_pause_of_the_checker_leaves_silence_where_it_was(
    registry: Registry, clock: ManualClock
) -> None:
    names = fleet_of(registry, 3)
    clock.advance(3600.0)
    registry.judge(3600.0)
    assert {state_of(registry, name) for name in names} == {State.READY}


def test_a_worker_that_leaves_registers_and_takes_nothing_new(registry: Registry) -> None:
    launched(registry)
    registry.register(msgspec.structs.replace(registration(), draining=True))
    assert state_of(registry) is State.DRAINING


def test_a_worker_that_leaves_by_itself_takes_nothing_new(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    registry.beat(msgspec.structs.replace(beat(), draining=True))
    assert state_of(registry) is State.DRAINING


def test_requests_wait_while_the_only_instance_is_replaced(registry: Registry) -> None:
    launched(registry)
    registry.register(registration())
    assert not registry.snapshot.models[0].renewing
    registry.post("a", Signal.DRAIN)
    assert registry.snapshot.models[0].renewing
    launched(registry, "b", epoch=2)
    assert registry.snapshot.models[0].renewing
    registry.register(registration("b", epoch=2))
    assert not registry.snapshot.models[0].renewing
