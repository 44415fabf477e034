"""The oracle for processes, states and tables: invariants I16 to I30, as far as any run can show them.

Each check takes facts and returns breaches in words; none looks at anything itself.

I25, I26 and I29 are about time and have tests of their own (docs/design/oracle.md says which).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hostler.app.config import LifeConfig
from hostler.core.lifecycle import ALIVE
from hostler.testing.facts import GatewayFacts, Move, Rows, Stored
from hostler.testing.watch import Sighting

LIVING = frozenset(state.value for state in ALIVE)
LEAVING = frozenset({"draining", "failed", "stopped"})
RESERVE_S = 15.0  # for a machine that others use too; named tests hold the tight bounds
_PARTS = ("controller", "gateway")
_NEVER = 1 << 60
_AFTER_DEATH_S = 10.0  # what ends so soon after a controller or gateway ended with it


def check_processes(
    instances: Rows, processes: Mapping[str, Collection[int]], apart: Collection[str] = ()
) -> list[str]:
    """I16, I21: the table is the processes.

    processes: instance id → pids that carry its tag. apart: the engines that are processes of their own.
    """
    found = []
    states = {one["instance_id"]: one["state"] for one in instances}
    for one in instances:
        alive = processes.get(one["instance_id"], ())
        if one["state"] in LIVING and one["pid"] is not None and one["pid"] not in alive:
            found.append(f"I21 {_name(one)} is {one['state']}, but its process {one['pid']} is not")
        elif one["state"] == "ready" and one["engine"] in apart and len(alive) < 2:
            found.append(f"I21 {_name(one)} is ready, but its engine has no process")
    for instance_id, pids in processes.items():
        state = states.get(instance_id)
        if state not in LIVING:
            found.append(f"I16 instance {instance_id} ({state or 'unknown'}) has {sorted(pids)}")
    return found


def check_nothing_left(processes: Mapping[int, str]) -> list[str]:
    """I16: no process is left. processes: pid → what it is."""
    return [f"I16 process {pid} is left: {what}" for pid, what in sorted(processes.items())]


def check_zombies(zombies: Mapping[int, int]) -> list[str]:
    """I16: every child was reaped. zombies: pid → parent."""
    return [f"I16 process {pid} ended and its parent {p} let it be" for pid, p in zombies.items()]


def check_slots(
    sightings: Iterable[Sighting], moves: Sequence[Move], ordered: Mapping[str, int] | None = None
) -> list[str]:
    """I17: never two live engines for one place.

    Two are lawful while a newer generation takes the place over, while the older one, told to leave before
    the newer was started, finishes what it has, and when an operator had ordered before that the older one
    be replaced. ordered: the numbers of the events that tell of such orders, by the older one's id.
    """
    homes = {move.instance_id: move for move in moves}
    left, failed = _first(moves, LEAVING), _first(moves, {"failed"})
    started = _first(moves, {"starting"})
    living: dict[tuple[str, int], list[Sighting]] = {}
    found = {}
    for one in sorted(_engines(sightings, moves), key=lambda one: one.first_s):
        home = homes.get(one.instance_id)
        if home is None:
            continue
        others = [other for other in living.get(home.place, ()) if other.last_s >= one.first_s]
        living[home.place] = [*others, one]
        for other in others:
            old, new = sorted((homes[other.instance_id], home), key=lambda move: move.epoch)
            if old.instance_id == new.instance_id or old.generation < new.generation:
                continue
            at = started.get(new.instance_id, _NEVER)
            if left.get(old.instance_id, _NEVER) < min(at, failed.get(old.instance_id, _NEVER)):
                continue
            if (ordered or {}).get(old.instance_id, _NEVER) < at:
                continue
            ids = old.instance_id, new.instance_id
            found[ids] = (
                f"I17 two engines at once for {old.model}#{old.replica}: {ids[0]}, {ids[1]}"
            )
    return list(found.values())


def check_causes(
    sightings: Sequence[Sighting], moves: Sequence[Move], hit: Collection[int], end_s: float
) -> list[str]:
    """I18: no engine ended because a controller or gateway did.

    hit: pids that the test itself sent a signal to. end_s: when the server was asked to stop.
    """
    ups = [one for one in sightings if one.kind == "up"]
    ended_s = min([end_s, *(one.last_s for one in ups if one.is_over)])
    last = {
        kind: max((o.first_s for o in sightings if o.kind == kind), default=0.0) for kind in _PARTS
    }
    deaths = [  # a successor came: it was no stop
        one
        for one in sightings
        if one.kind in _PARTS and one.is_over and one.last_s < min(ended_s, last[one.kind])
    ]
    told = {move.instance_id for move in moves if move.state in LEAVING}
    struck = {one.instance_id for one in sightings if one.pid in hit}
    found = {}
    served = {move.instance_id for move in moves if move.state == "ready"}
    for one in _engines(sightings, moves):
        instance_id = one.instance_id
        if not one.is_over or instance_id not in served - told - struck:
            continue
        for death in deaths:
            if -0.1 < one.last_s - death.last_s < _AFTER_DEATH_S and one.last_s < ended_s - 0.2:
                found[instance_id] = (
                    f"I18 the engine of {instance_id} ended {one.last_s - death.last_s:.2f} s after "
                    f"{death.kind} {death.pid}, and nobody had told or hit it"
                )
    return list(found.values())


def check_bystander(is_alive: bool) -> list[str]:
    """I19: a process that only looks like ours, by the beginning of its tag, was let alone."""
    return [] if is_alive else ["I19 a process of a neighbour folder was ended"]


def check_moves(moves: Iterable[Move], life: LifeConfig) -> list[str]:
    """I20: every start and every stop ended in time."""
    limits = _limits(life)
    return [
        f"I20 {move.model}#{move.replica} {move.instance_id} was {move.came_from} for {move.took_s:g} s"
        for move in moves
        if move.took_s > limits.get(move.came_from, float("inf"))
    ]


def check_states(instances: Rows, life: LifeConfig) -> list[str]:
    """I20: nobody is caught in a state between two others."""
    limits = _limits(life)
    return [
        f"I20 {_name(one)} is {one['state']} since {one['state_for_s']:.1f} s"
        for one in instances
        if one["state_for_s"] > limits.get(one["state"], float("inf"))
    ]


def check_wishes(models: Rows, *, is_quiet: bool = True) -> list[str]:
    """I21: every wish is fulfilled, or the table says what is on its way or why it failed.

    is_quiet: nothing may be on its way any more but a start that fails again and again.
    """
    found = []
    for model in models:
        by_place: dict[int, list[dict[str, Any]]] = {}
        for one in model["instances"]:
            by_place.setdefault(one["replica"], []).append(one)
        for replica in range(model["wanted"]):
            mine = [one["state"] for one in by_place.pop(replica, ())]
            serving = sum(state in ("ready", "suspect") for state in mine)
            if not mine:
                found.append(f"I21 {model['name']}#{replica} is wished, and nothing is known of it")
            if is_quiet and serving > 1:
                found.append(f"I21 {model['name']}#{replica} has {serving} instances that serve")
        for replica, rest in by_place.items():
            states = sorted(one["state"] for one in rest if one["state"] in LIVING)
            if states and is_quiet:
                found.append(
                    f"I21 {model['name']}#{replica} is not wished, but {', '.join(states)}"
                )
    return found


def check_stored(before: Stored | None, after: Stored | None, *, is_stopped: bool) -> list[str]:
    """I22, I27: the file is whole, its counters only grow, and after a stop nothing is said to run."""
    if after is None:
        return []
    found = [f"I22 the database: {problem}" for problem in after.problems]
    for name, value in (before.counters if before is not None else {}).items():
        if after.counters.get(name, 0) < value:
            found.append(f"I27 counter {name} went from {value} to {after.counters.get(name)}")
    if is_stopped and after.launches:
        found.append(f"I16 after the stop these are written down as running: {after.launches}")
    return found


def check_gateway(
    instances: Rows, gateway: GatewayFacts, incarnation: int, version: int
) -> list[str]:
    """I23: the gateway has what the controller says. incarnation, version: read before its table."""
    if (gateway.incarnation, gateway.version) < (incarnation, version):
        have = f"{gateway.incarnation}.{gateway.version}"
        return [f"I23 the gateway has snapshot {have}, the controller {incarnation}.{version}"]
    if (gateway.incarnation, gateway.version) != (incarnation, version):
        return ["I23 the controller's table changes all the time"]
    told = {(one["instance_id"], one["state"]) for one in instances if one["state"] in LIVING}
    have_rows = {(row.instance_id, row.state) for row in gateway.instances}
    return [
        f"I23 controller and gateway differ in {sorted(one)}" for one in [told ^ have_rows] if one
    ]


def check_routable(instances: Rows, gateway: GatewayFacts) -> list[str]:
    """I24: who may get requests has proven itself in this epoch, answers its probes and stays."""
    epochs = {one["instance_id"]: one["epoch"] for one in instances if one["state"] == "ready"}
    found = []
    for row in gateway.instances:
        if not row.routable:
            continue
        if row.state != "ready" or row.down:
            found.append(f"I24 {row.instance_id} may get requests: {row.state}, down={row.down}")
        elif epochs.get(row.instance_id) != row.epoch:
            found.append(
                f"I24 {row.instance_id} may get requests in epoch {row.epoch}; the controller says "
                f"{epochs.get(row.instance_id, 'not ready')}"
            )
    return found


def check_epochs(moves: Iterable[Move], counters: Mapping[str, int] | None = None) -> list[str]:
    """I27: each process of a place has a higher epoch than the one before it."""
    highest: dict[tuple[str, int], Move] = {}
    known: dict[str, int] = {}
    found = []
    for move in moves:
        if move.epoch == 0:  # not counted yet
            continue
        before = known.get(move.instance_id, 0)
        known[move.instance_id] = move.epoch
        if move.epoch < before:
            found.append(f"I27 {move.instance_id} went from epoch {before} to {move.epoch}")
        last = highest.get(move.place)
        if move.state == "starting" and last is not None and last.instance_id != move.instance_id:
            is_adopted = "adopted" in move.reason
            if move.epoch == last.epoch or (move.epoch < last.epoch and not is_adopted):
                found.append(
                    f"I27 {move.model}#{move.replica}: {move.instance_id} has epoch {move.epoch} after "
                    f"{last.instance_id} with {last.epoch}"
                )
        if last is None or move.epoch > last.epoch:
            highest[move.place] = move
    by_number: Counter[tuple[str, int]] = Counter()
    for name, value in (counters or {}).items():
        head, _, replica = name.rpartition(":")
        if head.startswith("epoch:") and replica.isdigit():
            model = head.removeprefix("epoch:").split("@")[0]
            by_number[model, int(replica)] = max(value, by_number[model, int(replica)])
    for place, move in highest.items():
        if counters is not None and by_number[place] < move.epoch:
            found.append(f"I27 epoch {move.epoch} of {place} is not in the store")
    return found


def check_indexes(models: Rows, instances: Rows) -> list[str]:
    """I28: the lists by model and by id name the same instances, and no two have one address."""
    found = []
    below = sorted(one["instance_id"] for model in models for one in model["instances"])
    flat = sorted(one["instance_id"] for one in instances)
    known = {model["name"] for model in models}
    if below != sorted(one["instance_id"] for one in instances if one["model_name"] in known):
        found.append(f"I28 by model there are {below}, by id {flat}")
    found += [
        f"I28 instance {one} is listed {n} times" for one, n in Counter(flat).items() if n > 1
    ]
    for model in models:
        counted = Counter(one["state"] for one in model["instances"])
        if dict(counted) != {state: n for state, n in model["states"].items() if n}:
            found.append(f"I28 {model['name']}: counts {model['states']}, list {dict(counted)}")
    sockets = Counter(
        one["address"]
        for one in instances
        if one["state"] in LIVING and one["address"].startswith("unix:")
    )
    found += [f"I28 {address} is of {n} instances" for address, n in sockets.items() if n > 1]
    return found


def check_names(deployments: Iterable[Mapping[str, Any]]) -> list[str]:
    """I30: a name or alias means exactly one model."""
    names = Counter(
        name for one in deployments for name in {one["name"], *(one.get("aliases") or ())}
    )
    return [f"I30 {name!r} means {n} models" for name, n in names.items() if n > 1]


def _engines(sightings: Iterable[Sighting], moves: Iterable[Move]) -> list[Sighting]:
    """The engines; of an instance that served without one apart, its worker."""
    ours = [one for one in sightings if one.instance_id and one.kind in ("engine", "worker")]
    apart = {one.instance_id for one in ours if one.kind == "engine"}
    inside = {move.instance_id for move in moves if move.state == "ready"} - apart
    return [one for one in ours if one.kind == "engine" or one.instance_id in inside]


def _first(moves: Iterable[Move], states: Collection[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for move in moves:
        if move.state in states:
            found.setdefault(move.instance_id, move.seq)
    return found


def _limits(life: LifeConfig) -> dict[str, float]:
    return {
        "starting": life.start_timeout_s + life.kill_grace_s + RESERVE_S,
        "draining": life.drain_timeout_s + life.kill_grace_s + RESERVE_S,
    }


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['model_name']}#{one['replica']} {one['instance_id']}"
