"""The oracle for processes and tables must see each breach: a check that cannot fail proves nothing."""

from typing import Any

import pytest

from hostler.app.config import LifeConfig
from hostler.testing import oracle
from hostler.testing.facts import GatewayFacts, GatewayRow, Move, Stored
from hostler.testing.watch import Sighting

LIFE = LifeConfig(start_timeout_s=10.0, drain_timeout_s=5.0, kill_grace_s=1.0)


def row(instance_id: str = "a", **changes: Any) -> dict[str, Any]:
    """One instance, as the admin API tells it."""
    facts = {
        "instance_id": instance_id,
        "model_name": "m",
        "replica": 0,
        "state": "ready",
        "epoch": 1,
        "pid": 10,
        "engine": "fake",
        "state_for_s": 1.0,
        "address": f"unix:/run/{instance_id}.sock",
    }
    return {**facts, **changes}


def model(*instances: dict[str, Any], name: str = "m", wanted: int = 1) -> dict[str, Any]:
    states: dict[str, int] = {}
    for one in instances:
        states[one["state"]] = states.get(one["state"], 0) + 1
    return {"name": name, "wanted": wanted, "states": states, "instances": list(instances)}


def move(seq: int, state: str, instance_id: str = "a", **changes: Any) -> Move:
    facts: dict[str, Any] = {
        "came_from": "pending",
        "model": "m",
        "replica": 0,
        "epoch": 1,
        "generation": 1,
        "took_s": 0.1,
    }
    return Move(seq=seq, state=state, instance_id=instance_id, **{**facts, **changes})


def seen(
    instance_id: str, first_s: float, last_s: float, kind: str = "engine", **changes: Any
) -> Sighting:
    facts = {"pid": hash((instance_id, kind)) & 0xFFFF, "is_over": True}
    return Sighting(
        kind=kind, instance_id=instance_id, first_s=first_s, last_s=last_s, **{**facts, **changes}
    )


def gateway(*rows: GatewayRow, version: int = 7) -> GatewayFacts:
    return GatewayFacts(incarnation=2, version=version, instances=rows)


ROUTABLE = GatewayRow(instance_id="a", epoch=1, state="ready", routable=True)
PAIR = [move(1, "starting"), move(2, "ready"), move(3, "starting", "b", epoch=2)]
RENEWED = [*PAIR[:2], move(3, "starting", "b", epoch=2, generation=2)]
DRAINED = [*PAIR[:2], move(3, "draining"), move(4, "starting", "b", epoch=2)]
FAILED = [*PAIR[:2], move(3, "failed"), move(4, "starting", "b", epoch=2)]
SERVED = [move(1, "starting"), move(2, "ready")]
BOTH = [seen("a", 0, 10), seen("b", 9, 20)]
NEXT = seen("", 5.5, 30, "controller", is_over=False)
DEATH = [seen("", 0, 5, "controller"), seen("a", 0, 6), seen("a", 0, 6, "worker"), NEXT]


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (oracle.check_processes([row()], {}), "I21 m#0 a is ready, but its process 10 is not"),
        (oracle.check_processes([row()], {"a": {11}}), "I21 m#0 a is ready"),
        (
            oracle.check_processes([row()], {"a": {10}}, ["fake"]),
            "I21 m#0 a is ready, but its engine",
        ),
        (oracle.check_processes([], {"a": {10}}), "I16 instance a (unknown) has [10]"),
        (oracle.check_processes([row(state="failed")], {"a": {10}}), "I16 instance a (failed)"),
        (oracle.check_nothing_left({5: "x"}), "I16 process 5 is left"),
        (oracle.check_zombies({5: 4}), "I16 process 5 ended and its parent 4"),
        (oracle.check_slots(BOTH, PAIR), "I17 two engines at once for m#0: a, b"),
        (oracle.check_slots(BOTH, FAILED), "I17 two engines at once for m#0: a, b"),
        (oracle.check_causes(DEATH, SERVED, (), 100), "I18 the engine of a ended 1.00 s after"),
        (oracle.check_bystander(False), "I19"),
        (
            oracle.check_moves([move(1, "ready", came_from="starting", took_s=40)], LIFE),
            "I20 m#0 a was starting for 40 s",
        ),
        (
            oracle.check_moves([move(1, "stopped", came_from="draining", took_s=30)], LIFE),
            "I20 m#0 a was draining for 30 s",
        ),
        (oracle.check_states([row(state="starting", state_for_s=40)], LIFE), "I20 m#0 a is start"),
        (oracle.check_states([row(state="draining", state_for_s=40)], LIFE), "I20 m#0 a is drain"),
        (oracle.check_wishes([model()]), "I21 m#0 is wished, and nothing is known of it"),
        (oracle.check_wishes([model(row(), wanted=0)]), "I21 m#0 is not wished, but ready"),
        (oracle.check_wishes([model(row(), row("b"))]), "I21 m#0 has 2 instances that serve"),
        (
            oracle.check_stored(None, Stored(problems=("row 1 missing",)), is_stopped=False),
            "I22 the database: row 1 missing",
        ),
        (
            oracle.check_stored(
                Stored(counters={"n": 3}), Stored(counters={"n": 2}), is_stopped=False
            ),
            "I27 counter n went from 3 to 2",
        ),
        (
            oracle.check_stored(None, Stored(launches=("a",)), is_stopped=True),
            "I16 after the stop these are written down as running",
        ),
        (
            oracle.check_gateway([row()], gateway(ROUTABLE), 2, 8),
            "I23 the gateway has snapshot 2.7",
        ),
        (oracle.check_gateway([row()], gateway(), 2, 7), "I23 controller and gateway differ"),
        (oracle.check_gateway([], gateway(ROUTABLE), 2, 7), "I23 controller and gateway differ"),
        (
            oracle.check_gateway([row()], gateway(ROUTABLE), 2, 6),
            "I23 the controller's table changes",
        ),
        (
            oracle.check_routable([row(state="draining")], gateway(ROUTABLE)),
            "I24 a may get requests",
        ),
        (
            oracle.check_routable([row(epoch=2)], gateway(ROUTABLE)),
            "I24 a may get requests in epoch 1",
        ),
        (
            oracle.check_routable(
                [row()],
                gateway(
                    GatewayRow(instance_id="a", epoch=1, state="ready", routable=True, down=True)
                ),
            ),
            "I24 a may get requests: ready, down=True",
        ),
        (
            oracle.check_epochs([move(1, "starting"), move(2, "starting", "b")]),
            "I27 m#0: b has epoch 1 after a with 1",
        ),
        (
            oracle.check_epochs([move(1, "starting", epoch=3), move(2, "starting", "b", epoch=2)]),
            "I27 m#0: b has epoch 2 after a with 3",
        ),
        (
            oracle.check_epochs([move(1, "starting", epoch=2), move(2, "ready")]),
            "I27 a went from epoch 2 to 1",
        ),
        (
            oracle.check_epochs([move(1, "starting", epoch=3)], {"epoch:m@llm:0": 2}),
            "is not in the",
        ),
        (oracle.check_indexes([model()], [row()]), "I28 by model there are []"),
        (oracle.check_indexes([model(row())], [row(), row()]), "I28 instance a is listed 2 times"),
        (
            oracle.check_indexes([{**model(row()), "states": {"ready": 2}}], [row()]),
            "I28 m: counts {'ready': 2}",
        ),
        (
            oracle.check_indexes(
                [model(row(), row("b", address="unix:/run/a.sock"))],
                [row(), row("b", address="unix:/run/a.sock")],
            ),
            "I28 unix:/run/a.sock is of 2 instances",
        ),
        (oracle.check_names([{"name": "m"}, {"name": "n", "aliases": ["m"]}]), "I30 'm' means 2"),
    ],
)
def test_I16_I17_I18_I19_I20_I21_I22_I23_I24_I27_I28_I30_each_breach_is_named(
    found: list[str], rule: str
) -> None:
    assert any(rule in one for one in found), found


def test_a_true_story_passes() -> None:
    other = row("b", replica=1)
    models, rows = [model(row(), other, wanted=2)], [row(), other]
    told = GatewayRow(instance_id="b", epoch=1, state="ready")
    assert oracle.check_processes(rows, {"a": {10, 11}, "b": {10, 12}}, ["fake"]) == []
    assert oracle.check_processes(rows, {"a": {10}, "b": {10}}, ["onnx"]) == []
    assert oracle.check_wishes(models) == []
    assert oracle.check_states(rows, LIFE) == []
    assert oracle.check_indexes(models, rows) == []
    assert oracle.check_gateway(rows, gateway(ROUTABLE, told), 2, 7) == []
    assert oracle.check_routable(rows, gateway(ROUTABLE, told)) == []
    assert oracle.check_names([{"name": "m", "aliases": ["n"]}, {"name": "o"}]) == []
    assert oracle.check_moves(RENEWED, LIFE) == []
    assert oracle.check_epochs(RENEWED, {"epoch:m@llm:0": 2}) == []
    stored = Stored(counters={"n": 3})
    assert oracle.check_stored(stored, stored, is_stopped=True) == []


@pytest.mark.parametrize(
    ("sightings", "moves"),
    [
        (BOTH, RENEWED),  # the newer one takes the place over
        (BOTH, DRAINED),  # the older one was told to leave first
        ([seen("a", 0, 8), seen("b", 9, 20)], PAIR),  # one after the other
        ([seen("a", 0, 10), seen("b", 9, 20, "warden")], PAIR),  # a fence is no engine
        ([seen("a", 0, 10), seen("b", 9, 20, "worker")], PAIR),  # it never had one
        ([seen("a", 0, 10), seen("a", 5, 20)], PAIR),  # two processes of one engine
        (BOTH, []),  # nobody knows their places
    ],
)
def test_I17_lawful_pairs_are_no_breach(sightings: list[Sighting], moves: list[Move]) -> None:
    assert oracle.check_slots(sightings, moves) == []


def test_I17_two_are_lawful_when_the_older_was_ordered_to_be_replaced_before() -> None:
    started = next(move.seq for move in PAIR if move.instance_id == "b")
    assert oracle.check_slots(BOTH, PAIR, {"a": started - 1}) == []
    assert oracle.check_slots(BOTH, PAIR, {"a": started + 1, "b": 0}) != []


def test_I17_an_engine_inside_its_worker_counts_as_one() -> None:
    moves = [*SERVED, move(3, "starting", "b", epoch=2), move(4, "ready", "b", epoch=2)]
    both = [seen("a", 0, 10, "worker"), seen("b", 9, 20, "worker")]
    assert oracle.check_slots(both, moves) == ["I17 two engines at once for m#0: a, b"]


@pytest.mark.parametrize(
    ("sightings", "moves", "hit", "end_s"),
    [
        (DEATH, [*SERVED, move(3, "failed")], (), 100),  # it crashed, and that is told
        (DEATH, SERVED[:1], (), 100),  # it never served
        (DEATH, SERVED, (DEATH[1].pid,), 100),  # the test did it
        (DEATH, SERVED, (DEATH[2].pid,), 100),  # or hit its worker
        (DEATH, SERVED, (), 5.1),  # the server was stopped
        (DEATH[:3], SERVED, (), 100),  # no successor: likewise
        ([*DEATH, seen("", 0, 5, "up")], SERVED, (), 100),  # everything of it ended
        (DEATH[1:], SERVED, (), 100),  # no controller died
        ([seen("", 0, 30, "controller"), DEATH[1]], SERVED, (), 100),  # long before
    ],
)
def test_I18_engines_that_ended_for_a_reason_are_no_breach(
    sightings: list[Sighting], moves: list[Move], hit: tuple[int, ...], end_s: float
) -> None:
    assert oracle.check_causes(sightings, moves, hit, end_s) == []


def test_I27_an_adopted_older_process_may_report_again() -> None:
    old = move(5, "starting", reason="adopted: its process runs already")
    assert oracle.check_epochs([*PAIR, old]) == []
