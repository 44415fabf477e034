"""Any order of orders, faults and late messages: what the manager believes is what is the case.

The pure core with processes on paper: thousands of steps a second. `make soak ARGS=--stateful` runs many.
"""

from collections import Counter

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from hostler.core.deployment import Deployment, Wish
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from tests.machines import CountedMachine, machine_settings
from tests.stateful.model import ELSEWHERE, Paper, Process, on_paper

NAMES = st.sampled_from(["anna", "bert"])
SERVES = (State.READY, State.SUSPECT)


class Core(CountedMachine):
    """Wishes of two models, faults of their processes, and every message twice or too late."""

    paper: Paper
    highest: dict[tuple[str, int], int]
    forgotten: dict[str, int]

    @initialize()
    def begin(self) -> None:
        self.paper = on_paper()
        self.highest = {}
        self.forgotten = {}

    # Orders

    @rule(name=NAMES, replicas=st.integers(1, 3))
    def start(self, name: str, replicas: int) -> None:
        old = self.paper.wishes.get(name)
        if old is not None:
            new = msgspec.structs.replace(old, wish=Wish.RUNNING, generation=old.generation + 1)
        else:
            new = Deployment(
                name=name,
                worker_type=WorkerType.LLM,
                engine="fake",
                replicas=replicas,
                generation=self.forgotten.get(name, 0) + 1,
                process_generation=self.forgotten.get(name, 0) + 1,
            )
        self.paper.wishes[name] = new
        self.paper.reconciler.pardon(new.worker_key)
        self.paper.reconciler.look()

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        if (old := self.paper.wishes.get(name)) is not None:
            self.paper.wishes[name] = msgspec.structs.replace(
                old, wish=Wish.STOPPED, generation=old.generation + 1
            )

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        if (old := self.paper.wishes.pop(name, None)) is not None:
            self.forgotten[name] = old.generation

    @rule(name=NAMES, replicas=st.integers(0, 3))
    def scale(self, name: str, replicas: int) -> None:
        if (old := self.paper.wishes.get(name)) is not None:
            self.paper.wishes[name] = msgspec.structs.replace(
                old, replicas=replicas, generation=old.generation + 1
            )

    @rule(name=NAMES)
    def renew(self, name: str) -> None:
        if (old := self.paper.wishes.get(name)) is not None:
            generation = old.generation + 1
            self.paper.wishes[name] = msgspec.structs.replace(
                old, generation=generation, process_generation=generation
            )
            self.paper.reconciler.pardon(old.worker_key)

    @rule(fits=st.booleans())
    def memory(self, fits: bool) -> None:
        self.paper.has_room = fits

    @rule()
    def look(self) -> None:
        self.paper.reconciler.look()
        self.check_places()

    @rule()
    def look_twice(self) -> None:
        self.paper.reconciler.look()
        again = self.paper.reconciler.look()
        assert not again, f"ordered twice: {again}"

    # Machines

    @rule(machine=st.sampled_from(ELSEWHERE), emptied=st.booleans())
    def empty(self, machine: str, emptied: bool) -> None:
        (self.paper.emptied.add if emptied else self.paper.emptied.discard)(machine)

    @rule(machine=st.sampled_from(ELSEWHERE))
    def lose(self, machine: str) -> None:
        if machine not in self.paper.cut:
            self.paper.lose(machine)

    @rule(machine=st.sampled_from(ELSEWHERE))
    def find(self, machine: str) -> None:
        if machine in self.paper.cut:
            self.paper.find(machine)

    # Processes

    @precondition(lambda self: self.paper.living())
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        process = self.one(data)
        if not process.hangs:
            process.loaded = True
            self.paper.deliver(process.registration())

    @precondition(lambda self: self.paper.living())
    @rule(data=st.data(), engine_ok=st.booleans())
    def beat(self, data: st.DataObject, engine_ok: bool) -> None:
        process = self.one(data)
        if process.loaded and not process.hangs:
            self.paper.deliver(process.beat(engine_ok=engine_ok))

    @precondition(lambda self: self.paper.living())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.paper.end(self.one(data))

    @precondition(lambda self: self.paper.living())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        process = self.one(data)
        self.paper.deliver(process.departure())
        self.paper.end(process)

    @precondition(lambda self: self.paper.living())
    @rule(data=st.data(), hangs=st.booleans())
    def hang(self, data: st.DataObject, hangs: bool) -> None:
        self.one(data).hangs = hangs

    @rule()
    def obey(self) -> None:
        for process in self.paper.living():
            if process.ordered_out and not process.hangs:
                self.paper.end(process)

    # News

    @precondition(lambda self: any(process.sent for process in self.paper.processes.values()))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """A recorded message comes again, however old its sender is."""
        messages = [m for process in self.paper.processes.values() for m in process.sent]
        before = self.table()
        message = data.draw(st.sampled_from(messages))
        gone = not self.paper.processes[message.instance_id].alive
        self.paper.deliver(message)
        if gone:
            assert self.table() == before, "a message of the dead changed something"

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.paper.clock.advance(seconds)
        self.paper.registry.judge()

    @rule()
    def kill_the_controller(self) -> None:
        self.paper.boot()

    @rule()
    def ask_for_strangers(self) -> None:
        before = len(self.paper.registry.records())
        for number in range(20):
            assert self.paper.registry.record(f"nobody{number}") is None
        assert len(self.paper.registry.records()) == before

    # Truth

    @invariant()
    def who_serves_was_not_ended(self) -> None:
        for view in self.paper.registry.snapshot.instances:
            if view.state is State.READY:
                process = self.paper.processes[view.instance_id]
                assert process.alive, f"{view.instance_id} is ready and has no process"
                assert not process.ordered_out, f"{view.instance_id} was sent away and is ready"
                assert process.loaded, f"{view.instance_id} never registered"
                assert process.machine not in self.paper.cut, f"{view.instance_id} is out of reach"

    @invariant()
    def every_process_is_in_the_table(self) -> None:
        known = {record.instance.instance_id for record in self.paper.registry.records()}
        for process in self.paper.living():
            if process.machine in self.paper.cut:
                continue  # it is ended when its machine is back
            assert process.instance.instance_id in known, f"{process.instance} is an orphan"

    @invariant()
    def epochs_only_grow(self) -> None:
        for process in self.paper.processes.values():
            place = (process.instance.worker_key, process.instance.replica)
            self.highest[place] = max(self.highest.get(place, 0), process.instance.epoch)
        for place, epoch in self.highest.items():
            assert self.paper.epochs[place] == epoch

    def teardown(self) -> None:
        """From wherever this ended: what is wished comes about, and stop reaches stopped."""
        if not hasattr(self, "paper"):
            return
        paper = self.paper
        for process in paper.living():
            process.hangs = False
        for machine in list(paper.cut):
            paper.find(machine)
        for wish in paper.wishes.values():
            paper.reconciler.pardon(wish.worker_key)
        paper.settle()
        for wish in paper.wishes.values():
            mine = [p for p in paper.living() if p.instance.worker_key == wish.worker_key]
            assert len(mine) == wish.wanted_instances, f"{wish.name}: {len(mine)} processes"
            assert {p.instance.generation for p in mine} <= {wish.process_generation}
            assert not paper.leaving(), "a machine was not emptied"
        paper.wishes.clear()
        paper.settle()
        assert paper.living() == []
        assert paper.registry.records() == []

    # Private

    def one(self, data: st.DataObject) -> Process:
        return data.draw(st.sampled_from(self.paper.living()))

    def check_places(self) -> None:
        """After a look, an old and a new process of a place at most are not on their way out.

        Of one specification one serves and one will. Who was adopted and has not spoken yet does not
        count: it may have been sent away by the controller before, and only it knows.
        """
        leaving = self.paper.leaving()
        seen: Counter[tuple[str, int, int, bool, bool]] = Counter()
        places: Counter[tuple[str, int]] = Counter()
        for record in self.paper.registry.records():
            one = record.instance
            is_known = one.instance_id not in self.paper.registry.unheard
            if is_known and one.state in (State.PENDING, State.STARTING, *SERVES):
                is_old, is_ready = one.instance_id in leaving, one.state is State.READY
                seen[one.worker_key, one.replica, one.generation, is_old, is_ready] += 1
                places[one.worker_key, one.replica] += 1
        assert max(seen.values(), default=0) <= 1, f"two for one place: {seen}"
        assert max(places.values(), default=0) <= 2, f"more than an old and a new one: {places}"

    def table(self) -> dict[str, State]:
        return {
            record.instance.instance_id: record.instance.state
            for record in self.paper.registry.records()
        }


TestF29F36F68Core = Core.TestCase
TestF29F36F68Core.settings = machine_settings(30, 50)
