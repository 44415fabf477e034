"""How long a start is waited for: as long as it may take."""

import asyncio
from pathlib import Path

import pytest

from hostler.app.config import HeartbeatConfig, LifeConfig
from hostler.app.paths import StatePaths
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import Deployment
from hostler.core.errors import UpstreamTimeout
from hostler.core.lifecycle import Instance, Signal
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerStartupRequest
from hostler.manager.files import ModelFiles
from hostler.manager.progress import Progress
from hostler.manager.reconcile import Reconciler
from hostler.manager.waiting import Waiting
from hostler.manager.wishes import Wishes
from hostler.registry.expected import Expected
from hostler.registry.registry import Registry
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer

LIMIT_S = 0.2


class Hands:
    def launch(self, deployment: Deployment, replica: int) -> None: ...

    def drain(self, instance_id: str, reason: str) -> None: ...

    def forget(self, instance_id: str) -> None: ...


class Parts:
    """A model whose one instance does what the test says."""

    def __init__(self, folder: Path) -> None:
        life = LifeConfig(start_timeout_s=LIMIT_S, load_bytes_per_s=1000)
        loop = asyncio.get_running_loop()
        self.writer = Writer("w")
        self.registry = Registry(HeartbeatConfig(), loop.time, incarnation=1)
        self.wishes = Wishes(MemoryStore(), self.writer, Catalog(), lambda: None)
        reconciler = Reconciler(
            wishes=self.wishes.all,
            instances=self.registry.instances,
            hands=Hands(),
            life=life,
            clock=loop.time,
        )
        self.waiting = Waiting(
            life,
            self.wishes,
            Progress(self.registry, reconciler, StatePaths(folder)),
            ModelFiles(folder, Catalog(), tell=lambda event: None, clock=loop.time),
        )

    def add(self, wish: Deployment) -> None:
        one = Instance(
            instance_id="i1",
            worker_key=wish.worker_key,
            model_name=wish.name,
            replica=0,
            epoch=1,
            generation=wish.process_generation,
            since_s=0.0,
        )
        self.registry.add(one, Expected(worker_type=wish.worker_type, engine=wish.engine))


def test_the_time_of_a_start_begins_when_its_files_are_here(tmp_path: Path) -> None:
    async def main() -> None:
        parts = Parts(tmp_path)
        async with parts.writer.running(), asyncio.TaskGroup() as tasks:
            wish, _ = await parts.wishes.start(WorkerStartupRequest(model="m", engine="fake"))
            parts.add(wish)
            parts.registry.post("i1", Signal.FETCH)
            ready = tasks.create_task(parts.waiting.until_ready(wish))
            limited = tasks.create_task(late(parts, wish))
            await asyncio.sleep(LIMIT_S * 4)
            assert not ready.done()
            assert limited.done()  # who gave a limit of his own has it
            parts.registry.post("i1", Signal.LAUNCH)
            parts.registry.post("i1", Signal.LOADED)
            await ready

    async def late(parts: Parts, wish: Deployment) -> None:
        with pytest.raises(UpstreamTimeout):
            await parts.waiting.until_ready(wish, LIMIT_S)

    asyncio.run(main())


def test_a_start_that_takes_too_long_says_what_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        parts = Parts(tmp_path)
        async with parts.writer.running():
            wish, _ = await parts.wishes.start(WorkerStartupRequest(model="m", engine="fake"))
            parts.add(wish)
            parts.registry.post("i1", Signal.LAUNCH)
            parts.registry.post("i1", Signal.EXITED, "it fell over")
            with pytest.raises(UpstreamTimeout, match=r"not done after 0\.2 s: it fell over"):
                await parts.waiting.until_ready(wish)

    asyncio.run(main())


def test_a_large_model_is_waited_for_longer(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "large.gguf"
        file.write_bytes(b"x" * 5000)
        wish = Deployment(
            name="m", worker_type=WorkerType.LLM, engine="llama.cpp", source=str(file)
        )
        limit_s = Parts(tmp_path).waiting.start_limit_s
        assert limit_s(wish) == pytest.approx(LIMIT_S + 5.0)
        file.unlink()
        assert limit_s(wish) == LIMIT_S

    asyncio.run(main())
