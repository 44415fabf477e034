"""F29, F30: reports in any order, repeated, late or forged, against a model of what may come of them."""

import hashlib

import hypothesis.strategies as st
from hypothesis.stateful import (
    Bundle,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hostler.app.config import HeartbeatConfig
from hostler.core.errors import HostlerError
from hostler.core.fleet import Beat, Departure, Registration
from hostler.core.lifecycle import ALIVE, Instance, Signal, State
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.snapshot import Endpoint
from hostler.registry.expected import Expected
from hostler.registry.registry import Registry
from hostler.testing.clock import ManualClock
from tests.machines import CountedMachine, machine_settings

Message = Registration | Beat | Departure
NAMES = st.sampled_from(["a", "b", "c"])


class Reports(CountedMachine):
    """Launch, report, replay, forge, expire and replace; the indexes must never disagree."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.registry = Registry(HeartbeatConfig(), self.clock)
        self.proven: set[str] = set()  # who may be ready: a true registration was accepted
        self.over: set[str] = set()  # given up: never alive again
        self.seq = 0
        self.launches = 0

    @rule(name=NAMES)
    def launch(self, name: str) -> None:
        """Every process has a new id; the place's epoch grows."""
        self.launches += 1
        instance_id = f"{name}{self.launches}"
        secret_hash = hashlib.sha256(instance_id.encode()).hexdigest()
        self.registry.add(
            Instance(
                instance_id=instance_id,
                worker_key=f"{name}@llm",
                model_name=name,
                epoch=self.launches,
            ),
            Expected(worker_type=WorkerType.LLM, engine="fake", secret_hash=secret_hash),
        )
        self.registry.post(instance_id, Signal.LAUNCH)

    @precondition(lambda self: self.registry.records())
    @rule(target=sent, data=st.data(), kind=st.sampled_from(["register", "beat", "sick", "leave"]))
    def report(self, data: st.DataObject, kind: str) -> Message:
        record = data.draw(st.sampled_from(self.registry.records()))
        one = record.instance
        message = self.message(one.instance_id, one.epoch, one.instance_id, kind, pid=1)
        self.deliver(message, is_true=True)
        return message

    @rule(message=sent)
    def replay(self, message: Message) -> None:
        """A copy that comes late, after whatever has happened since."""
        self.deliver(message, is_true=True)

    @precondition(lambda self: self.registry.records())
    @rule(
        data=st.data(),
        kind=st.sampled_from(["register", "beat", "leave"]),
        forgery=st.sampled_from(["secret", "other's secret", "epoch", "stranger", "pid"]),
    )
    def forge(self, data: st.DataObject, kind: str, forgery: str) -> None:
        """Nothing that is forged is accepted, and nothing changes by it."""
        record = data.draw(st.sampled_from(self.registry.records()))
        one = record.instance
        name, epoch, secret, pid = one.instance_id, one.epoch, one.instance_id, 1
        match forgery:
            case "secret":
                secret = ""
            case "other's secret":
                secret = "a1" if name != "a1" else "b1"
            case "epoch":
                epoch -= 1
            case "stranger":
                name = "zz"
            case "pid":
                if kind != "register" or record.pid is None:
                    return
                pid = 666
        before = (self.registry.snapshot, record.beat_seq, record.heard_at_s, record.instance)
        assert not self.deliver(self.message(name, epoch, secret, kind, pid=pid), is_true=False)
        after = (self.registry.snapshot, record.beat_seq, record.heard_at_s, record.instance)
        assert before == after

    @precondition(lambda self: self.registry.records())
    @rule(data=st.data(), order=st.sampled_from([Signal.EXITED, Signal.LOST]))
    def lose(self, data: st.DataObject, order: Signal) -> None:
        record = data.draw(st.sampled_from(self.registry.records()))
        self.registry.post(record.instance.instance_id, order)

    @precondition(lambda self: self.registry.records())
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from(self.registry.records()))
        self.registry.forget(record.instance.instance_id)
        self.over.add(record.instance.instance_id)

    @rule(seconds=st.sampled_from([0.5, 2.0, 29.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.registry.judge()

    @invariant()
    def the_dead_stay_dead(self) -> None:
        alive = {
            r.instance.instance_id for r in self.registry.records() if r.instance.state in ALIVE
        }
        assert not alive & self.over
        self.over |= {
            r.instance.instance_id
            for r in self.registry.records()
            if r.instance.state in (State.FAILED, State.STOPPED)
        }

    @invariant()
    def only_who_registered_is_ready(self) -> None:
        for record in self.registry.records():
            if record.instance.state in (State.READY, State.SUSPECT):
                assert record.instance.instance_id in self.proven

    @invariant()
    def the_snapshot_says_what_the_records_say(self) -> None:
        snapshot = self.registry.snapshot
        told = {view.instance_id: (view.state, view.epoch) for view in snapshot.instances}
        held = {
            r.instance.instance_id: (r.instance.state, r.instance.epoch)
            for r in self.registry.records()
            if r.instance.state in ALIVE
        }
        assert told == held
        sockets = [v.endpoint.socket for v in snapshot.instances if v.endpoint.socket]
        assert len(sockets) == len(set(sockets))

    # Parts

    def message(self, name: str, epoch: int, secret: str, kind: str, *, pid: int) -> Message:
        self.seq += 1
        match kind:
            case "register":
                return Registration(
                    instance_id=name,
                    epoch=epoch,
                    secret=secret,
                    pid=pid,
                    endpoint=Endpoint(socket=f"/run/{name}.sock"),
                    metadata=ModelMetadata(model="m"),
                )
            case "leave":
                return Departure(instance_id=name, epoch=epoch, secret=secret)
        ok = kind == "beat"
        return Beat(instance_id=name, epoch=epoch, secret=secret, seq=self.seq, engine_ok=ok)

    def deliver(self, message: Message, *, is_true: bool) -> bool:
        """Whether it was accepted."""
        try:
            match message:
                case Registration():
                    self.registry.register(message)
                    if is_true:
                        self.proven.add(message.instance_id)
                case Beat():
                    self.registry.beat(message)
                case Departure():
                    self.registry.depart(message)
        except HostlerError:
            return False
        return True


def test_F29_F30_no_order_of_reports_revives_the_dead_or_splits_the_indexes() -> None:
    few = machine_settings(60, 40)
    run_state_machine_as_test(Reports, settings=few)
