"""The oracle over a LocalWorkerManager in a program: its tables, its processes and its log are one story."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hostler.app.process import tagged
from hostler.core.lifecycle import ALIVE
from hostler.manager.local import LocalWorkerManager
from hostler.manager.workers import STATE_TAG
from hostler.storage.store import EVENTS_KEPT
from hostler.testing import oracle
from hostler.testing.facts import live_instances, moves_of, zombies_of
from hostler.testing.truth import APART, CONVERGED_S


async def assert_manager_truth(
    manager: LocalWorkerManager, within_s: float = CONVERGED_S, others: Sequence[Path] = ()
) -> None:
    """Wait until a running manager's tables and processes agree (I16, I20, I21, I27, I28, I30).

    others: state folders of machines that joined it, whose processes are here, too.

    Raises:
        AssertionError: they do not in time; with every breach of the last look.
    """
    ends_s = time.monotonic() + within_s
    while breaches := await _look(manager, others):
        if time.monotonic() > ends_s:
            raise AssertionError("\n".join(["the oracle:", *breaches]))
        await asyncio.sleep(0.05)


# Private


async def _look(manager: LocalWorkerManager, others: Sequence[Path]) -> list[str]:
    processes: dict[str, set[int]] = {}
    ours: dict[int, str] = {}
    for state in (manager.paths.state_dir, *others):
        processes |= await asyncio.to_thread(live_instances, state)
        ours |= await asyncio.to_thread(tagged, STATE_TAG, str(state))
    zombies = await asyncio.to_thread(zombies_of, ours)
    rows = [msgspec.to_builtins(data) for data in manager.run_data()]
    models = [
        {
            "name": wish.name,
            "wanted": wish.wanted_instances,
            "instances": [row for row in rows if row["model_name"] == wish.name],
        }
        for wish in manager.wishes.all()
    ]
    events = await asyncio.to_thread(manager.store.events, 0, EVENTS_KEPT)
    moves = moves_of(msgspec.to_builtins(event) for event in events)
    life = manager.config.life
    return [
        *oracle.check_processes(rows, processes, APART),
        *oracle.check_zombies(zombies),
        *oracle.check_states(rows, life),
        *oracle.check_wishes(models),
        *oracle.check_moves(moves, life),
        *oracle.check_epochs(moves),
        *oracle.check_names(msgspec.to_builtins(wish) for wish in manager.wishes.all()),
        *check_views(manager),
    ]


def check_views(manager: LocalWorkerManager) -> list[str]:
    """I28: records, snapshot and counts of a manager's registry name the same instances."""
    registry = manager.registry
    alive = {r.instance.instance_id for r in registry.records() if r.instance.state in ALIVE}
    shown = {view.instance_id for view in registry.snapshot.instances}
    found = [f"I28 the registry has {sorted(alive)}, its snapshot {sorted(shown)}"]
    if alive == shown:
        found.clear()
    for record in registry.records():
        if record.view.state is not record.instance.state:
            found.append(f"I28 {record.instance.instance_id} is shown as {record.view.state}")
    for model in registry.snapshot.models:
        states = [
            r.instance.state for r in registry.records() if r.instance.model_name == model.name
        ]
        if sum(count for _, count in model.states) != len(states):
            found.append(f"I28 {model.name}: counts {dict(model.states)}, {len(states)} instances")
    return found
