"""Orders that race, and orders that cannot be: one story comes of them, never two processes a place."""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import Config, LifeConfig
from hostler.app.process import tagged
from hostler.catalog.catalog import Catalog
from hostler.catalog.needs import free_memory_bytes
from hostler.core.deployment import Deployment, Wish, check_name
from hostler.core.errors import AlreadyRunning, BadRequest, HostlerError, ModelNotFound, NameTaken
from hostler.core.lifecycle import Event, Instance, Signal, State, advance
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerShutdownRequest, WorkerStartupRequest
from hostler.manager.local import LocalWorkerManager
from hostler.manager.plan import GONE
from hostler.manager.reconcile import Reconciler
from hostler.manager.wishes import Wishes
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer
from hostler.testing.embedded import assert_manager_truth

CALLERS = 16
ECHO = WorkerStartupRequest(model="echo", worker_type=WorkerType.LLM, engine="fake")


class Places:
    """Processes that exist in the table alone; they obey when the dice say so."""

    def __init__(self, dice: random.Random) -> None:
        self.table: dict[str, Instance] = {}
        self._dice = dice
        self._epoch = 0
        self.launched = 0

    def launch(self, deployment: Deployment, replica: int) -> None:
        self._epoch += 1
        self.launched += 1
        one = Instance(
            instance_id=str(self._epoch),
            worker_key=deployment.worker_key,
            model_name=deployment.name,
            replica=replica,
            epoch=self._epoch,
            generation=deployment.process_generation,
            since_s=0.0,
        )
        self.table[one.instance_id] = one
        self._move(one.instance_id, Signal.LAUNCH)

    def drain(self, instance_id: str, reason: str) -> None:
        self._move(instance_id, Signal.DRAIN)

    def forget(self, instance_id: str) -> None:
        self.table.pop(instance_id, None)

    def step(self) -> None:
        """One process gets on: it becomes ready, or ends its drain."""
        if moving := [
            i for i in self.table.values() if i.state in (State.STARTING, State.DRAINING)
        ]:
            one = self._dice.choice(moving)
            starts = one.state is State.STARTING
            self._move(one.instance_id, Signal.LOADED if starts else Signal.DRAINED)

    def living(self) -> list[Instance]:
        return [one for one in self.table.values() if one.state not in GONE]

    def _move(self, instance_id: str, signal: Signal) -> None:
        one = self.table[instance_id]
        event = Event(instance_id=instance_id, epoch=one.epoch, signal=signal, at_s=0.0)
        self.table[instance_id] = advance(one, event)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_F68_sixteen_callers_leave_the_last_accepted_wish(seed: int) -> None:
    dice = random.Random(seed)

    async def main() -> None:
        writer = Writer("w")
        store, places = MemoryStore(), Places(dice)
        wishes = Wishes(store, writer, Catalog(), lambda: None)
        reconciler = Reconciler(
            wishes=wishes.all,
            instances=lambda: list(places.table.values()),
            hands=places,
            life=LifeConfig(),
            clock=lambda: 0.0,
        )
        accepted: list[tuple[int, Wish]] = []

        async def caller() -> None:
            for _ in range(3):
                try:
                    if dice.random() < 0.6:
                        told, _ = await wishes.start(ECHO)
                    else:
                        told = await wishes.stop("echo")
                except ModelNotFound:  # stopped before anybody started it
                    continue
                accepted.append((told.generation, told.wish))
                reconciler.look()
                in_places = Counter(one.replica for one in places.living() if _serves(one))
                assert all(number == 1 for number in in_places.values()), f"seed {seed}"
                places.step()

        async with writer.running(), asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(caller())
        if not accepted:
            return
        generation, wish = max(accepted)
        (kept,) = store.deployments()
        assert (kept.generation, kept.wish) == (generation, wish), f"seed {seed}"
        assert len({one for one in accepted if one[0] == generation}) == 1
        for _ in range(200):
            reconciler.look()
            places.step()
        assert [one.state for one in places.living()] == [State.READY] * kept.wanted_instances

    asyncio.run(main())


def _serves(one: Instance) -> bool:
    return one.state is not State.DRAINING


@asynccontextmanager
async def managed(**life: float | bool | int) -> AsyncIterator[LocalWorkerManager]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
        fields = {"drain_timeout_s": 2.0, "kill_grace_s": 1.0, "backoff_first_s": 0.1, **life}
        config = Config(state_dir=folder, life=LifeConfig(**fields))  # type: ignore[arg-type]
        async with LocalWorkerManager(config, models=(), declare=False) as manager:
            yield manager
            await assert_manager_truth(manager)
        assert tagged(STATE_TAG, folder) == {}, "a process outlived its manager"


def workers_of(manager: LocalWorkerManager) -> list[int]:
    ours = tagged(STATE_TAG, str(manager.paths.state_dir))
    return [
        pid for pid in tagged(ROLE_TAG, "worker") if pid in ours and pid in tagged(INSTANCE_TAG)
    ]


def test_F68_sixteen_callers_and_real_processes_end_with_one_or_none() -> None:
    async def main() -> None:
        async with managed() as manager:
            for turn in range(4):
                orders: list[Coroutine[None, None, object]] = [
                    manager.model_startup(ECHO, wait=False) for _ in range(CALLERS)
                ]
                if turn % 2:
                    stop = WorkerShutdownRequest(model="echo")
                    orders += [manager.model_shutdown(stop, wait=False) for _ in range(CALLERS)]
                    random.Random(turn).shuffle(orders)
                await asyncio.gather(*orders)
                wished = manager.wishes.find("echo")
                if wished.wish is Wish.RUNNING:
                    await manager.until_ready(wished, 30)
                (await manager.model_startup(ECHO))
                assert len(workers_of(manager)) == 1, f"turn {turn}"
                assert len(await manager.get_model_instances(WorkerType.LLM, "echo")) == 1
            stops = [
                manager.model_shutdown(WorkerShutdownRequest(model="echo")) for _ in range(CALLERS)
            ]
            await asyncio.gather(*stops)
            assert workers_of(manager) == []

    asyncio.run(main())


def test_F69_of_two_creates_of_one_name_one_wins_and_the_other_says_why() -> None:
    async def main() -> None:
        writer = Writer("w")
        for number in range(50):
            store = MemoryStore()
            wishes = Wishes(store, writer, Catalog(), lambda: None)
            one = WorkerStartupRequest(model="m", engine="fake", params={"tokens": 1})
            two = WorkerStartupRequest(model="m", engine="fake", params={"tokens": 2})
            pair = (one, two) if number % 2 else (two, one)
            told = await asyncio.gather(*map(wishes.start, pair), return_exceptions=True)
            assert Counter(type(each) for each in told) == {tuple: 1, AlreadyRunning: 1}
            other = next(each for each in told if isinstance(each, HostlerError))
            assert other.http_status == 409
            assert len(store.deployments()) == 1

    asyncio.run(main())


names = st.text(
    st.sampled_from("aAbB1./_-\u0430\uff41\u00e9e\u0301\u212a \n\u202e\u0000"),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.tuples(names, st.lists(names, max_size=2)), max_size=6))
@settings(max_examples=200, deadline=None)
def test_F69_no_name_ever_means_two_models(asked: list[tuple[str, list[str]]]) -> None:
    async def main() -> None:
        writer = Writer("w")
        wishes = Wishes(MemoryStore(), writer, Catalog(), lambda: None)
        async with writer.running():
            for name, aliases in asked:
                request = WorkerStartupRequest(model=name, engine="fake", aliases=tuple(aliases))
                with suppress(BadRequest, NameTaken, AlreadyRunning):
                    await wishes.start(request)
        meanings = Counter(n for one in wishes.all() for n in {one.name, *one.aliases})
        assert all(number == 1 for number in meanings.values()), meanings
        assert all(name.isascii() and name.isprintable() for name in meanings)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["\uff41bc", "\u0430bc", "e\u0301", "a b", "../x", "", "x" * 97])
def test_F69_a_name_that_looks_like_another_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_name(name)


def test_F73_two_starts_for_the_last_room_and_one_gets_it() -> None:
    free = free_memory_bytes()
    assert free is not None
    need = int(free * 0.6)  # of which the fake engine takes nothing: the sum is of promises

    async def main() -> None:
        async with managed(crash_limit=2, memory_reserve_bytes=0) as manager:
            big = [
                WorkerStartupRequest(model=name, engine="fake", params={"memory_bytes": need})
                for name in ("one", "two")
            ]
            told = await asyncio.gather(*map(manager.model_startup, big), return_exceptions=True)
            lost = [each for each in told if isinstance(each, HostlerError)]
            assert len(lost) == 1
            assert "MiB are missing. Stop one of: " in lost[0].message
            assert len(workers_of(manager)) == 1
            winner = "one" if isinstance(told[1], HostlerError) else "two"
            loser = "two" if winner == "one" else "one"
            await manager.model_shutdown(WorkerShutdownRequest(model=winner))
            await manager.model_shutdown(WorkerShutdownRequest(model=loser))
            await manager.model_startup(WorkerStartupRequest(model=loser))  # there is room now
            assert len(workers_of(manager)) == 1

    asyncio.run(main())


@pytest.mark.parametrize("kept_bytes", [0, 3, 4, 12, 24])
def test_F70_a_truncated_file_is_told_and_no_engine_sees_it(
    kept_bytes: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(
        (b"GGUF" + (3).to_bytes(4, "little") + (9).to_bytes(8, "little") * 2)[:kept_bytes]
    )
    request = WorkerStartupRequest(
        model="m", worker_type=WorkerType.LLM, engine="llama.cpp", source=str(path)
    )

    async def main() -> None:
        async with managed() as manager:
            with pytest.raises(HostlerError, match=r"m\.gguf"):
                await manager.model_startup(request)
            (record,) = manager.registry.records()
            assert (record.instance.state, record.error_code) == (State.FAILED, "model_corrupt")
            assert workers_of(manager) == []
            assert list(manager.paths.logs_dir.glob("*")) == []  # no process wrote a line

    asyncio.run(main())
