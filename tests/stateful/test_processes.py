"""The same promises with real processes: kills, hangs and lost managers; then nothing may be left.

Few sequences here; many with HOSTLER_HYPOTHESIS=soak (`make soak ARGS=--stateful`).
"""

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time

import pytest

from hostler import Config, HostlerError, LocalWorkerManager, WorkerApplyRequest, WorkerApplyType
from hostler.app.config import HeartbeatConfig, LifeConfig
from hostler.app.process import ProcessHandle, tagged
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerRunData, WorkerShutdownRequest, WorkerStartupRequest
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.storage.memory import MemoryStore

SEQUENCES, STEPS = (500, 12) if os.environ.get("HOSTLER_HYPOTHESIS") == "soak" else (3, 6)
SECONDS = float(os.environ.get("HOSTLER_STATEFUL_S", "600"))
NAMES = ("anna", "bert")
LIFE = LifeConfig(
    drain_timeout_s=2.0,
    kill_grace_s=1.0,
    start_timeout_s=8.0,  # also of one that was stopped by a signal while it loads
    backoff_first_s=0.1,
    backoff_last_s=0.5,
    crash_limit=1000,
)
BEATS = HeartbeatConfig(interval_s=0.3, suspect_after_s=0.8, lost_after_s=2.0)


class Machine:
    """One state folder, one store, and the managers that come and go on it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = tempfile.mkdtemp(prefix="hst", dir="/tmp")
        self.store = MemoryStore()
        self.story: list[str] = []
        self.epochs: dict[tuple[str, int], int] = {}
        self.manager = self.next_manager()

    def next_manager(self) -> LocalWorkerManager:
        config = Config(state_dir=self.folder, life=LIFE, heartbeat=BEATS)
        return LocalWorkerManager(config, store=self.store, models=(), declare=False)

    async def step(self) -> None:
        rules = (self.start, self.stop, self.renew, self.scale, self.kill_worker,
                 self.kill_engine, self.hang, self.lose_manager, self.ask, self.wait)  # fmt: skip
        rule = self.random.choice(rules)
        name = self.random.choice(NAMES)
        self.story.append(f"{rule.__name__} {name}")
        try:
            await rule(name)
        except HostlerError as error:  # refused, and told so
            self.story.append(f"  {error.code}")
        self.check()

    # Rules

    async def start(self, name: str) -> None:
        request = WorkerStartupRequest(
            model=name, worker_type=WorkerType.LLM, engine="fake", replicas=2
        )
        for _ in range(2):
            await self.manager.model_startup(request, wait=False)

    async def stop(self, name: str) -> None:
        await self.manager.model_shutdown(WorkerShutdownRequest(model=name), wait=False)

    async def renew(self, name: str) -> None:
        await self.manager.worker_apply(
            WorkerApplyRequest(model=name, apply_type=WorkerApplyType.RESTART, timeout_s=1.0)
        )

    async def scale(self, name: str) -> None:
        order = WorkerApplyRequest(
            model=name,
            apply_type=WorkerApplyType.UPDATE_PARAMS,
            replicas=self.random.choice((1, 2)),
            timeout_s=1.0,
        )
        await self.manager.worker_apply(order)

    async def kill_worker(self, name: str) -> None:
        if (victim := self.victim(name)) is not None:
            send(victim.pid, signal.SIGKILL)

    async def kill_engine(self, name: str) -> None:
        if (victim := self.victim(name)) is not None:
            for pid in sorted(tagged(INSTANCE_TAG, victim.instance_id), reverse=True):
                if pid != victim.pid:
                    send(pid, signal.SIGKILL)
                    return

    async def hang(self, name: str) -> None:
        if (victim := self.victim(name)) is not None:
            send(victim.pid, signal.SIGSTOP)

    async def lose_manager(self, name: str) -> None:
        await self.manager.abandon()
        self.manager = self.next_manager()
        await self.manager.start()

    async def ask(self, name: str) -> None:
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        async with asyncio.timeout(5):
            assert (await self.manager.generate(body)).success

    async def wait(self, name: str) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 0.8))

    # Truth

    def check(self) -> None:
        """What is always so, however much is on its way."""
        places = set()
        for data in self.manager.run_data():
            place = (data.worker_key, data.replica)
            if data.state is State.READY:
                wish = self.manager.wishes.find(data.model_name)
                key = (*place, data.epoch)
                assert key not in places
                places.add(key)
                assert wish is not None
            assert data.epoch == 0 or data.epoch <= self.highest(place, data.epoch)

    def highest(self, place: tuple[str, int], epoch: int) -> int:
        self.epochs[place] = max(self.epochs.get(place, 0), epoch)
        return self.epochs[place]

    async def check_truth(self) -> None:
        """Once it is quiet: the table is the processes, every wish is fulfilled, no slot is lent."""
        end_s = time.monotonic() + 30
        while not self.is_true():
            assert time.monotonic() < end_s, f"not true after 30 s: {self.told()}"
            await asyncio.sleep(0.05)
        assert self.manager.router.load == {}

    def is_true(self) -> bool:
        for wish in self.manager.wishes.all():
            mine = [d for d in self.manager.run_data(wish.name) if d.state is State.READY]
            if len(mine) != wish.wanted_instances:
                return False
        table = {d.instance_id for d in self.manager.run_data()}
        agents = {d.pid for d in self.manager.run_data() if not d.stopped}
        ours = set(tagged(STATE_TAG, self.folder))
        engines = set(tagged(INSTANCE_TAG).values()) & self.tags_of(ours)
        return agents <= ours and engines <= table

    def tags_of(self, pids: set[int]) -> set[str]:
        return {value for pid, value in tagged(INSTANCE_TAG).items() if pid in pids}

    def victim(self, name: str) -> WorkerRunData | None:
        found = [d for d in self.manager.run_data(name) if d.pid and not d.stopped]
        return self.random.choice(found) if found else None

    def told(self) -> str:
        table = [f"{d.instance_id} {d.state} {d.reason}" for d in self.manager.run_data()]
        return "\n".join([*self.story, *table])


def send(pid: int | None, number: signal.Signals) -> None:
    if pid is not None and (handle := ProcessHandle.of(pid)) is not None:
        handle.signal(number)


async def run_sequence(seed: int, steps: int) -> None:
    machine = Machine(seed)
    await machine.manager.start()
    try:
        for _ in range(steps):
            await machine.step()
        await machine.check_truth()
        for wish in machine.manager.wishes.all():
            await machine.manager.model_shutdown(WorkerShutdownRequest(model=wish.name))
        assert not [d for d in machine.manager.run_data() if d.state is State.READY]
    finally:
        await machine.manager.stop(ignore_exception=True)
    left = tagged(STATE_TAG, machine.folder)
    assert left == {}, f"orphans {left} of seed {seed}: {machine.told()}"
    shutil.rmtree(machine.folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(int(SECONDS) + 120)
def test_I16_I17_I20_whatever_dies_the_table_is_the_processes() -> None:
    began_s, count = time.monotonic(), 0
    first = int(os.environ.get("HOSTLER_STATEFUL_SEED", "20261123"))
    for seed in range(first, first + SEQUENCES):
        if time.monotonic() - began_s > SECONDS:
            break
        asyncio.run(run_sequence(seed, STEPS))
        count += 1
    sys.stderr.write(f"stateful: {count} sequences of {STEPS} steps, real processes\n")
    assert count >= 1
