"""The hosts of a controller, with a clock by hand: who is believed, what is ordered, what silence means."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hostler.app.config import HeartbeatConfig
from hostler.app.tokens import StoredHost
from hostler.core.errors import Conflict, NotFound, StaleEpoch
from hostler.core.hosts import (
    HostBeat,
    HostBeatAnswer,
    HostFacts,
    InstanceReport,
    Order,
    Role,
    Standing,
)
from hostler.core.lifecycle import Instance, State
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.snapshot import ModelView
from hostler.core.worker import OperatorEvent
from hostler.registry.expected import Expected
from hostler.registry.hosts import FIRST_S, HostBook
from hostler.registry.registry import Registry
from hostler.testing.clock import ManualClock

INCARNATION = 7
META = ModelMetadata(model="qwen", context_length=4096)


class Room:
    """A controller's book of hosts, and what hosts say to it."""

    def __init__(self, beats: HeartbeatConfig | None = None) -> None:
        self.clock = ManualClock()
        self.told: list[OperatorEvent] = []
        self.beats = beats or HeartbeatConfig()
        self.registry = Registry(self.beats, self.clock, incarnation=INCARNATION)
        self.registry.describe([ModelView(name="qwen", worker_type=WorkerType.LLM, engine="fake")])
        self.refused: tuple[str, ...] = ()
        self.book = HostBook(
            self.registry,
            self.beats,
            self.clock,
            tell=self.told.append,
            refused=lambda: self.refused,
        )
        self.seqs: dict[tuple[str, str], int] = {}

    def join(self, host_id: str) -> None:
        self.book.learn(joined(host_id))

    def ordered(self, host_id: str, *instance_ids: str) -> None:
        """Expect instances on a host and order them there, the whole list."""
        for instance_id in instance_ids:
            if self.registry.record(instance_id) is None:
                host = self.book.host(host_id)
                self.registry.add(
                    Instance(instance_id=instance_id, worker_key="qwen@llm", model_name="qwen"),
                    Expected(
                        worker_type=WorkerType.LLM,
                        engine="fake",
                        endpoint=host.endpoint(instance_id),
                    ),
                )
        self.book.order(host_id, [order(instance_id) for instance_id in instance_ids])

    def say(
        self, host_id: str, *reports: InstanceReport, run_id: str = "r1", **more: Any
    ) -> tuple[str, ...]:
        """One beat of a host; return of whom the full report is wanted."""
        return self.beat(host_id, *reports, run_id=run_id, **more).wanted

    def beat(
        self, host_id: str, *reports: InstanceReport, run_id: str = "r1", **more: Any
    ) -> HostBeatAnswer:
        self.seqs[host_id, run_id] = seq = more.pop("seq", self.seqs.get((host_id, run_id), 0) + 1)
        orders = self.book.host(host_id).orders
        beat = HostBeat(
            host_id=host_id,
            run_id=run_id,
            seq=seq,
            incarnation=more.pop("incarnation", INCARNATION if orders else 0),
            version=more.pop("version", orders.version if orders else 0),
            instances=reports,
            **more,
        )
        return self.book.beat(host_id, beat, "10.0.0.9")

    def state(self, instance_id: str = "i1") -> State:
        record = self.registry.record(instance_id)
        assert record is not None
        return record.instance.state

    def reason(self, instance_id: str = "i1") -> str:
        record = self.registry.record(instance_id)
        assert record is not None
        return record.instance.reason

    def pass_s(self, seconds: float, *, beating: Sequence[str] = ()) -> None:
        """Let time pass a second at a time; these hosts say their ready instance lives."""
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            for host_id in beating:
                self.say(host_id, *(ready(i) for i in self.book.host(host_id).since))
            self.book.judge()

    def standing(self, host_id: str) -> Standing:
        return self.book.host(host_id).standing

    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]


def joined(host_id: str, name: str = "") -> StoredHost:
    return StoredHost(
        host_id=host_id,
        role=Role.HOST,
        name=name or host_id,
        facts=HostFacts(name=name or host_id),
        address="10.0.0.9",
        port=8102,
    )


def order(instance_id: str) -> Order:
    return Order(
        instance_id=instance_id,
        epoch=1,
        replica=0,
        generation=1,
        model_name="qwen",
        worker_type=WorkerType.LLM,
        engine="fake",
    )


def report(instance_id: str, state: State, epoch: int = 1, **more: Any) -> InstanceReport:
    return InstanceReport(instance_id=instance_id, epoch=epoch, state=state, **more)


def ready(instance_id: str, **more: Any) -> InstanceReport:
    return report(instance_id, State.READY, metadata=META, pid=9, **more)


@pytest.fixture
def room() -> Room:
    room = Room()
    room.join("b")
    return room


@pytest.fixture
def serving(room: Room) -> Room:
    room.ordered("b", "i1")
    room.say("b", ready("i1"))
    return room


def test_an_ordered_instance_lives_through_its_life(room: Room) -> None:
    room.ordered("b", "i1")
    seen = [room.state()]
    for state in (State.FETCHING, State.STARTING, State.READY, State.DRAINING, State.STOPPED):
        room.say("b", report("i1", state, metadata=META if state is State.READY else None))
        seen.append(room.state())
    assert seen == [
        State.PENDING,
        State.FETCHING,
        State.STARTING,
        State.READY,
        State.DRAINING,
        State.STOPPED,
    ]


def test_an_instance_on_a_host_is_reached_through_its_relay(serving: Room) -> None:
    (view,) = serving.registry.snapshot.instances
    assert (view.endpoint.host, view.endpoint.port) == ("10.0.0.9", 8102)
    assert (view.endpoint.host_id, view.endpoint.prefix, view.endpoint.tls) == ("b", "/i/i1", True)


def test_a_host_with_another_address_is_reached_there(serving: Room) -> None:
    serving.say("b", ready("i1"), address="10.0.0.77", port=9000)
    (view,) = serving.registry.snapshot.instances
    assert (view.endpoint.host, view.endpoint.port) == ("10.0.0.77", 9000)


def test_only_a_full_report_makes_an_instance_ready(room: Room) -> None:
    room.ordered("b", "i1")
    assert room.say("b", report("i1", State.READY)) == ("i1",)
    assert room.state() is State.PENDING
    assert room.say("b", ready("i1")) == ()
    assert room.state() is State.READY
    assert room.say("b", report("i1", State.READY)) == ()


def test_an_engine_that_does_not_answer_gets_no_new_requests(serving: Room) -> None:
    serving.say("b", report("i1", State.READY, engine_ok=False))
    assert serving.state() is State.SUSPECT
    serving.say("b", report("i1", State.READY))
    assert serving.state() is State.READY


def test_an_instance_that_failed_says_why(serving: Room) -> None:
    serving.say("b", report("i1", State.FAILED, reason="out of memory", error_code="oom_killed"))
    record = serving.registry.record("i1")
    assert record is not None
    assert (serving.state(), record.error_code) == (State.FAILED, "oom_killed")
    assert serving.reason() == "out of memory"


def test_an_instance_that_its_host_started_again_is_another_one(serving: Room) -> None:
    serving.say("b", report("i1", State.STARTING))
    assert serving.state() is State.FAILED


def test_an_ordered_instance_that_is_not_there_is_given_up_at_the_second_beat(
    serving: Room,
) -> None:
    serving.say("b")
    assert serving.state() is State.READY
    serving.say("b")
    assert serving.state() is State.FAILED
    assert "does not have it" in serving.reason()


def test_an_instance_is_not_missed_by_a_host_that_has_not_heard_of_it(serving: Room) -> None:
    serving.ordered("b", "i1", "i2")
    for _ in range(3):
        serving.say("b", ready("i1"), version=1)
    assert serving.state("i2") is State.PENDING


def test_F29_a_host_says_nothing_of_what_was_ordered_from_another(serving: Room) -> None:
    serving.join("c")
    serving.say("c", report("i1", State.FAILED, reason="a lie"))
    assert serving.state() is State.READY


def test_F29_a_report_of_another_epoch_says_nothing(serving: Room) -> None:
    for epoch in (0, 2):
        serving.say("b", report("i1", State.FAILED, epoch=epoch))
        assert serving.state() is State.READY


def test_F29_a_host_does_not_speak_for_another(serving: Room) -> None:
    serving.join("c")
    beat = HostBeat(host_id="b", run_id="r1", seq=99)
    with pytest.raises(Conflict, match="may not speak for"):
        serving.book.beat("c", beat)


def test_F29_a_repeated_beat_changes_nothing(serving: Room) -> None:
    serving.say("b", report("i1", State.FAILED), seq=1)
    assert serving.state() is State.READY


def test_F29_an_old_run_of_a_host_process_is_refused(serving: Room) -> None:
    serving.say("b", ready("i1"), run_id="r2")
    with pytest.raises(StaleEpoch, match="another process"):
        serving.say("b", report("i1", State.FAILED), run_id="r1", seq=50)
    assert serving.state() is State.READY


def test_F30_a_host_that_never_joined_is_told_so(room: Room) -> None:
    with pytest.raises(NotFound, match="never joined"):
        room.book.beat("x", HostBeat(host_id="x", run_id="r", seq=1))


def test_F30_an_instance_that_nobody_ordered_is_not_taken_in(room: Room) -> None:
    room.book.order("b", ())
    assert room.say("b", ready("stray")) == ()
    assert room.registry.record("stray") is None


def test_F30_an_instance_that_was_given_up_stays_given_up(serving: Room) -> None:
    serving.pass_s(31)
    assert serving.state() is State.FAILED
    serving.say("b", ready("i1"))
    assert serving.state() is State.FAILED
    assert not serving.registry.snapshot.instances


def test_F35_a_host_that_heard_a_newer_controller_is_not_believed(serving: Room) -> None:
    with pytest.raises(Conflict, match="controller 8"):
        serving.say("b", report("i1", State.FAILED), incarnation=INCARNATION + 1)
    assert serving.state() is State.READY


def test_F36_the_same_orders_again_are_no_news(serving: Room) -> None:
    before = serving.book.host("b").orders
    serving.ordered("b", "i1")
    assert serving.book.host("b").orders is before
    serving.ordered("b", "i1", "i2")
    after = serving.book.host("b").orders
    assert before is not None
    assert after is not None
    assert (before.version, after.version) == (1, 2)


def test_a_silent_host_is_suspect_then_lost_with_all_it_has(serving: Room) -> None:
    serving.ordered("b", "i1", "i2")
    serving.say("b", ready("i1"), ready("i2"))
    serving.pass_s(2)
    assert serving.state("i1") is State.READY
    serving.pass_s(1)
    assert (serving.state("i1"), serving.state("i2")) == (State.SUSPECT, State.SUSPECT)
    assert serving.standing("b") is Standing.SUSPECT
    serving.pass_s(27)
    assert (serving.state("i1"), serving.state("i2")) == (State.FAILED, State.FAILED)
    assert serving.standing("b") is Standing.LOST
    assert serving.kinds() == ["host.suspect", "host.lost"]
    assert "its host b has been silent" in serving.reason("i1")


def test_a_host_that_is_back_in_time_serves_on(serving: Room) -> None:
    serving.pass_s(5)
    serving.say("b", ready("i1"))
    assert serving.state() is State.READY
    assert serving.standing("b") is Standing.ALIVE
    assert serving.kinds() == ["host.suspect", "host.back"]


def test_a_host_that_is_lost_while_its_instance_comes_up(room: Room) -> None:
    room.ordered("b", "i1", "i2")
    room.say("b", report("i1", State.FETCHING), report("i2", State.STARTING))
    room.pass_s(31)
    assert (room.state("i1"), room.state("i2")) == (State.FAILED, State.FAILED)


def test_what_drains_on_a_lost_host_is_stopped(serving: Room) -> None:
    serving.say("b", report("i1", State.DRAINING))
    serving.pass_s(31)
    assert serving.state() is State.STOPPED


def test_F23_a_host_that_answers_gateways_is_neither_suspect_nor_replaced(room: Room) -> None:
    room.ordered("b", "i1")
    room.say("b", ready("i1"))
    for _ in range(400):
        room.clock.advance(1.0)
        room.book.host("b").vouched_at_s = room.clock()
        room.book.judge()
        assert room.state() is State.READY
    assert room.standing("b") is Standing.UNKNOWN
    assert room.kinds()[-1] == "host.unknown"
    room.say("b", ready("i1"))
    assert (room.standing("b"), room.kinds()[-1]) == (Standing.ALIVE, "host.back")


def test_F23_a_gateway_s_word_brings_a_suspect_host_back_and_its_end_counts_as_silence(
    room: Room,
) -> None:
    room.ordered("b", "i1", "i2")
    room.say("b", ready("i1"), ready("i2", engine_ok=False))
    room.pass_s(4)
    assert (room.standing("b"), room.state()) == (Standing.SUSPECT, State.SUSPECT)
    room.book.host("b").vouched_at_s = room.clock()
    room.book.judge()
    assert (room.standing("b"), room.state()) == (Standing.UNKNOWN, State.READY)
    assert room.state("i2") is State.SUSPECT  # for its own engine
    room.pass_s(10)
    assert (room.standing("b"), room.state()) == (Standing.SUSPECT, State.SUSPECT)
    room.pass_s(25)
    assert (room.standing("b"), room.state()) == (Standing.LOST, State.FAILED)
    room.book.host("b").vouched_at_s = room.clock()
    room.book.judge()
    assert room.standing("b") is Standing.LOST  # what was given up stays so


def test_F23_most_hosts_silent_at_once_speaks_of_the_controller(serving: Room) -> None:
    serving.join("c")
    serving.join("d")
    serving.pass_s(FIRST_S + 10, beating=["b", "c", "d"])
    serving.pass_s(100, beating=["d"])
    assert serving.state() is State.READY
    serving.pass_s(250, beating=["d"])
    assert serving.state() is State.FAILED


def test_F24_the_first_host_that_is_back_after_a_mass_loss_gives_the_others_time(
    serving: Room,
) -> None:
    serving.join("c")
    serving.pass_s(FIRST_S + 10, beating=["b", "c"])
    serving.pass_s(100)  # neither is heard: longer than it takes one alone to be lost
    serving.pass_s(10, beating=["c"])
    assert (serving.standing("c"), serving.standing("b")) == (Standing.ALIVE, Standing.SUSPECT)
    assert serving.state() is State.SUSPECT
    serving.pass_s(1, beating=["b", "c"])
    assert (serving.standing("b"), serving.state()) == (Standing.ALIVE, State.READY)
    assert "host.lost" not in serving.kinds()


def test_F24_a_host_that_stays_away_after_a_mass_loss_is_lost(serving: Room) -> None:
    serving.join("c")
    serving.pass_s(FIRST_S + 10, beating=["b", "c"])
    serving.pass_s(100)
    serving.pass_s(30, beating=["c"])
    assert (serving.standing("b"), serving.state()) == (Standing.LOST, State.FAILED)


def test_F33_a_clock_that_stood_still_here_counts_for_nobody(serving: Room) -> None:
    serving.clock.advance(60)
    serving.book.judge(paused_s=60)
    assert serving.state() is State.READY


def test_a_controller_that_has_just_started_gives_its_hosts_time(room: Room) -> None:
    room.pass_s(FIRST_S + 2)
    assert room.standing("b") is Standing.ALIVE
    room.pass_s(2)
    assert room.standing("b") is Standing.SUSPECT


def test_F37_gateways_are_told_nothing_before_many_hosts_had_the_time_to_come_back() -> None:
    room = Room()
    for number in range(1000):
        room.join(f"h{number}")

    async def main() -> None:
        async with room.book.running():
            waiting = asyncio.ensure_future(room.registry.arrivals.all_came())
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            room.clock.advance(25.0)
            await room.registry.arrivals.all_came()

    asyncio.run(main())


def test_F37_many_hosts_are_told_to_beat_less_often() -> None:
    room = Room(HeartbeatConfig(most_per_s=50))
    hosts = [f"h{number}" for number in range(500)]
    for host_id in hosts:
        room.join(host_id)
    for host_id in hosts:  # they all come at once, as after a restart of the controller
        room.say(host_id)
    due: list[float] = []
    for host_id in hosts * 2:  # and from then on when they were told to
        room.clock.now_s = room.book.host(host_id).due_s
        due.append(room.clock.now_s)
        room.say(host_id)
    assert due == sorted(due)
    per_second = [sum(at <= one < at + 1 for one in due) for at in due]
    assert max(per_second) <= 41, "a fifth is left for what comes out of turn"
    assert 12 < room.book.host("h7").interval_s < 13
    room.clock.advance(12)
    room.book.judge()
    assert room.standing("h7") is Standing.ALIVE, "silence is judged by the interval it was told"


def test_F37_who_comes_back_while_others_are_away_is_told_to_beat_half_as_often() -> None:
    room = Room(HeartbeatConfig(most_per_s=50))
    hosts = [f"h{number}" for number in range(500)]
    for host_id in hosts:
        room.join(host_id)
    room.book.judge()
    first = room.beat("h0")
    assert (first.next_beat_s, first.spread_s) == pytest.approx((25.0, 40.0))
    for host_id in hosts[1:]:
        room.clock.advance(0.08)
        room.say(host_id)
    room.clock.advance(40)
    room.book.judge()
    for host_id in hosts[:400]:
        room.say(host_id)
    room.clock.advance(300)
    for host_id in hosts[:100]:
        room.say(host_id)
    room.book.judge()
    room.book.judge()
    last = room.beat("h0")
    assert last.spread_s == pytest.approx(8.0), "those that were given up are not waited for"


def test_a_beat_out_of_turn_takes_nobody_elses_time(room: Room) -> None:
    room.say("b")
    due_s = room.book.host("b").due_s
    for _ in range(5):
        room.say("b")
    assert room.book.host("b").due_s == due_s


def test_a_host_that_says_goodbye_takes_its_instances_along(serving: Room) -> None:
    serving.book.leave("b", "r1")
    assert serving.state() is State.FAILED
    assert serving.standing("b") is Standing.LEFT
    serving.pass_s(60)
    with pytest.raises(StaleEpoch):
        serving.say("b", run_id="r1")
    serving.say("b", run_id="r2")
    assert serving.standing("b") is Standing.ALIVE
    assert serving.kinds() == ["host.left", "host.back"]


def test_a_late_goodbye_of_an_earlier_process_says_nothing(serving: Room) -> None:
    serving.say("b", ready("i1"), run_id="r2")
    serving.book.leave("b", "r1")
    assert serving.state() is State.READY


def test_a_removed_host_hears_an_empty_list_last(serving: Room) -> None:
    host = serving.book.host("b")
    serving.book.drop("b")
    assert host.is_removed
    assert host.orders is not None
    assert host.orders.orders == ()
    assert serving.state() is State.FAILED
    with pytest.raises(NotFound):
        serving.say("b")


def test_a_host_is_found_by_its_id_or_its_name(room: Room) -> None:
    room.book.learn(joined("c1", "gpu"))
    assert room.book.find("gpu").host_id == room.book.find("c1").host_id == "c1"
    room.book.learn(joined("c2", "gpu"))
    with pytest.raises(Conflict, match="c1, c2"):
        room.book.find("gpu")
    with pytest.raises(NotFound, match="there are: b, gpu, gpu"):
        room.book.find("nobody")


def test_what_happens_on_a_host_is_told_of_its_own_instances_alone(serving: Room) -> None:
    for instance_id, kind in (("i1", "fetch.progress"), ("other", "fetch.progress"), ("i1", "x.y")):
        event = OperatorEvent(kind=kind, model="lies", instance_id=instance_id, message="half")
        serving.say("b", ready("i1"), events=(event,))
    assert [(one.kind, one.model, one.fields["host"]) for one in serving.told] == [
        ("fetch.progress", "qwen", "b")
    ]


def test_orders_wait_until_there_are_any(room: Room) -> None:
    async def hear() -> int:
        host = room.book.host("b")
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(host.orders_after(0))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            room.book.order("b", ())
            return (await waiting).version

    assert asyncio.run(hear()) == 1


def test_what_a_host_is_told_can_be_read_back(serving: Room) -> None:
    orders = serving.book.host("b").orders
    assert msgspec.json.decode(msgspec.json.encode(orders), type=type(orders)) == orders


def test_F118_a_list_names_the_gateways_that_were_removed_and_is_new_when_they_change() -> None:
    room = Room()
    room.join("b")
    room.ordered("b")
    first = room.book.host("b").orders
    assert first is not None
    assert first.refused == ()
    room.refused = ("gate1",)
    room.ordered("b")
    second = room.book.host("b").orders
    assert second is not None
    assert (second.version, second.refused) == (first.version + 1, ("gate1",))
    room.ordered("b")
    assert room.book.host("b").orders is second
