"""Truth: what must hold of a server after every step, and what must hold once it is quiet.

I16 no process without a row of the table; I17 one process a place; I18 who is not harmed is not restarted;
I20 every order comes to an end; I27 epochs only grow; I11 slots in use return to 0; and no instance that is
gone comes back, is reported ready, or takes a request.
"""

import http.client
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from hostler.testing.executions import Execution
from hostler.testing.ledger import check_answers, check_ends, check_executions
from hostler.testing.load import Outcome, Seen
from tests.chaos.pressure import is_engine
from tests.stateful.belief import Belief, spec_of
from tests.stateful.rig import BYSTANDER, TOKENS, Json, Rig

SOON_S = 20.0  # for what takes a tenth of it on a machine that is not shared
CONVERGED_S = 60.0
LOOK_EVERY_S = 0.06
ALIVE = ("starting", "ready", "suspect")

Asked = tuple[str, "Future[tuple[float, Seen]]"]


def place_of(row: Json) -> tuple[str, int]:
    return row["worker_key"], row["replica"]


class Truth:
    """Remembers what was seen of one server, and judges what is seen now."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.epochs: dict[tuple[str, int], dict[str, int]] = {}
        self.known: dict[str, Json] = {}  # specifications by instance id
        self.gone_at_s: dict[str, float] = {}
        self.renewed: set[str] = set()  # models that may have two processes a place for a while
        self.bystander = self._bystander()

    def gone(self) -> list[Json]:
        """The specifications of the instances that are no more, in the order of their ends."""
        return [self.known[one] for one in self.gone_at_s if one in self.known]

    def late_message(self, number: int, route: str, whose: str) -> Json | None:
        """Return what an instance may have sent long ago; None when there is none.

        whose: of one that is "gone", of "old epoch" of one that lives, or its first one "again".
        """
        alive = [self.known[one] for one in sorted(self.rig.specs()) if one in self.known]
        specs = self.gone() if whose == "gone" else alive
        if not specs:
            return None
        spec = specs[-1 - number % len(specs)]
        message: Json = {
            "instance_id": spec["instance_id"],
            "epoch": spec["epoch"] - (whose == "old epoch"),
            "secret": spec["secret"],
        }
        if route == "/register":
            message |= {"pid": 1, "endpoint": {"socket": spec["engine_socket"]}}
            message["metadata"] = {"model": spec["model_name"]}
        elif route == "/beat":
            message["seq"] = 1
        return message

    def forget_sequence(self) -> None:
        """Another sequence begins; epochs and the names of the dead are kept."""
        self.renewed.clear()
        for instance_id in list(self.gone_at_s)[:-200]:
            del self.gone_at_s[instance_id]
            self.known.pop(instance_id, None)

    # After every step

    def check(self) -> None:
        """Judge the table and the processes as they are now, however much is on its way."""
        known_before = set(self.known)
        processes, at_s = self.rig.processes(), time.monotonic()
        rows = self.rig.table()
        self.known.update(self.rig.specs())
        if rows is None:
            return  # no controller: nobody says anything
        self._check_epochs(rows)
        self._check_places(rows)
        ids = {row["instance_id"] for row in rows}
        back = ids & self.gone_at_s.keys()
        assert not back, f"gone and back in the table: {back}"
        for instance_id in known_before - ids - processes.keys() - self.gone_at_s.keys():
            self.gone_at_s[instance_id] = at_s
        if processes.keys() - ids:
            self._wait(self._orphans, "every process is in the table")
        if self.rig.sockets() - ids:
            self._wait(self._stray_sockets, "every engine socket is of an instance in the table")
        if any(row["state"] in ALIVE and self._is_dead(row) for row in rows):
            self._wait(self._ghosts, "every living row has its process")

    def _check_epochs(self, rows: Iterable[Json]) -> None:
        counted = [row for row in rows if row["epoch"]]  # 0: not counted yet, there is no process
        before = {place: max(seen.values()) for place, seen in self.epochs.items()}
        for row in counted:
            place, instance_id, epoch = place_of(row), row["instance_id"], row["epoch"]
            seen = self.epochs.setdefault(place, {})
            if instance_id in seen:
                assert seen[instance_id] == epoch, f"the epoch was {seen[instance_id]}: {row}"
                continue
            assert epoch > before.get(place, 0), f"an epoch that did not grow: {row} {seen}"
            assert epoch not in seen.values(), f"one epoch twice: {row} {seen}"
            seen[instance_id] = epoch

    def _check_places(self, rows: Iterable[Json]) -> None:
        places: dict[tuple[str, int], list[Json]] = {}
        for row in rows:
            if row["state"] in ALIVE:
                places.setdefault((row["model_name"], row["replica"]), []).append(row)
        for (model, replica), living in places.items():
            most = 2 if model in self.renewed else 1
            assert len(living) <= most, f"{len(living)} for place {replica} of {model}: {living}"

    # Once it is quiet

    def converge(self, beliefs: dict[str, Belief]) -> None:
        """Wait until what is wished is what is, and judge it."""
        self._wait(lambda: self._untruth(beliefs), "what is wished is what is", CONVERGED_S)
        self.check()
        models = self.rig.models() or {}
        for name in beliefs:
            serves = name in models and models[name]["wanted"] > 0
            told = f"{name} {'serves' if serves else 'does not serve'}"
            self._wait(partial(self._served, name, serves), told)
        self._wait(self._in_flight, "nothing is in flight")

    def _untruth(self, beliefs: dict[str, Belief]) -> str:
        """What is not true yet, in words; empty when all is as it should be."""
        models, rows = self.rig.models(), self.rig.table()
        if models is None or rows is None:
            return "no controller"
        for name, belief in beliefs.items():
            if (spec := spec_of(models.get(name))) not in belief.allowed:
                return f"{name} is wished as {spec}, acknowledged was {belief.allowed}"
        for name, model in models.items():
            wanted = {"ready": model["wanted"]} if model["wanted"] else {}
            if model["states"] != wanted:
                return f"{name}: wanted {model['wanted']}, there are {model['states']}"
        specs, processes = self.rig.specs(), self.rig.processes()
        ids = {row["instance_id"] for row in rows}
        for what, found in (
            ("processes", set(processes)),
            ("specifications", set(specs)),
            ("sockets", self.rig.sockets()),
        ):
            if found != ids:
                return f"{what} of {found}, the table has {ids}"
        if unwished := [row for row in rows if row["model_name"] not in models]:
            return f"nobody wishes these any more, and they are not gone yet: {unwished}"
        for row in rows:
            engines = [pid for pid in processes[row["instance_id"]] if is_engine(pid)]
            wished = models[row["model_name"]]["deployment"]["params"]["tokens"]
            started = specs[row["instance_id"]]["params"]["tokens"]
            if len(engines) != 1 or self._is_dead(row):
                return f"{row['instance_id']} has engines {engines}: {row}"
            if started != wished:
                return f"{row['instance_id']} was started with {started} tokens, wished {wished}"
            if row["in_flight"]:
                return f"{row['instance_id']} has {row['in_flight']} slots in use"
        return ""

    def judge(self, asked: list[Asked]) -> None:
        """What clients saw and what engines did is one story."""
        seen: list[Seen] = []
        excused: set[str] = set()  # their gateway was killed under them
        for model, future in asked:
            began_s, one = future.result(120)
            seen.append(one)
            killed = self.rig.gateway_killed_at_s
            if any(began_s - 1.0 <= at <= began_s + one.seconds + 1.0 for at in killed):
                excused.add(one.request_id)
            elif model == BYSTANDER:
                assert one.outcome is Outcome.OK, f"{BYSTANDER}: {one}"
        ours = {one.request_id for one in seen}
        executions = self.rig.executions()
        mine = [one for one in executions if one.request_id in ours]
        calm = [one for one in seen if one.request_id not in excused]
        breaches = [
            *check_answers(calm, {}, TOKENS),
            *check_ends(calm),
            *check_executions(calm, mine, math.inf),
            *self._late(executions),
        ]
        breaches += [f"no end: {one}" for one in calm if one.outcome is Outcome.TIMEOUT]
        assert not breaches, "\n".join(breaches)

    def _late(self, executions: Iterable[Execution]) -> list[str]:
        return [
            f"{one.instance_id} was gone and took request {one.request_id}"
            for one in executions
            if one.started_at_s > self.gone_at_s.get(one.instance_id, math.inf)
        ]

    def is_empty(self) -> str:
        """What of the sequences' models is left, in words."""
        rows = self.rig.table()
        if rows is None:
            return "no controller"
        names = {row["model_name"] for row in rows} - {BYSTANDER}
        ids = {row["instance_id"] for row in rows}
        left = {id_: pids for id_, pids in self.rig.processes().items() if id_ not in ids}
        return f"rows of {names}, processes {left}" if names or left else ""

    def wait_empty(self) -> None:
        self._wait(self.is_empty, "nothing is left of the sequence", CONVERGED_S)
        self.check_bystander()

    def check_bystander(self) -> None:
        """I18, I26: who was not harmed is the process it was."""
        assert self._bystander() == self.bystander, f"{BYSTANDER} was replaced"

    # Private: what is not so, in words

    def _orphans(self) -> str:
        processes = self.rig.processes()
        rows = self.rig.table()
        if rows is None:
            return ""
        left = processes.keys() - {row["instance_id"] for row in rows}
        return f"processes { ({one: processes[one] for one in left}) } are nobody's" if left else ""

    def _stray_sockets(self) -> str:
        sockets = self.rig.sockets()
        rows = self.rig.table()
        if rows is None:
            return ""
        left = sockets - {row["instance_id"] for row in rows}
        return f"sockets of {left} are nobody's" if left else ""

    def _ghosts(self) -> str:
        rows = self.rig.table() or []
        dead = [row for row in rows if row["state"] in ALIVE and self._is_dead(row)]
        return f"rows without a process: {dead}" if dead else ""

    def _is_dead(self, row: Json) -> bool:
        if row["pid"] is None:
            return row["state"] in ("ready", "suspect")
        return row["pid"] not in self.rig.processes().get(row["instance_id"], set())

    def _served(self, name: str, serves: bool) -> str:
        try:
            status, _, data = self.rig.cluster.chat(name, f"are you there? {time.monotonic()}")
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        return "" if (status == 200) is serves else f"status {status}: {data[:300]!r}"

    def _in_flight(self) -> str:
        try:
            _, _, text = self.rig.cluster.request("GET", "/metrics")
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        lines = [
            line for line in text.decode().splitlines() if line.startswith("hostler_in_flight")
        ]
        busy = [line for line in lines if float(line.rpartition(" ")[2]) != 0]
        return f"in flight: {busy}" if busy or not lines else ""

    def _bystander(self) -> tuple[str, int]:
        end_s = time.monotonic() + CONVERGED_S
        while True:
            rows = [row for row in self.rig.table() or () if row["model_name"] == BYSTANDER]
            if len(rows) == 1 and rows[0]["state"] == "ready":
                return str(rows[0]["instance_id"]), int(rows[0]["pid"])
            assert time.monotonic() < end_s, f"{BYSTANDER}: {rows}"
            time.sleep(LOOK_EVERY_S)

    def _wait(self, untruth: Callable[[], str], what: str, seconds: float = SOON_S) -> None:
        end_s = time.monotonic() + seconds
        while told := untruth():
            assert time.monotonic() < end_s, f"not within {seconds:g} s: {what}: {told}"
            time.sleep(LOOK_EVERY_S)
