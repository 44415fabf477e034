"""Rigs: a started manager of each implementation, and the event loop it lives in."""

import asyncio
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from hostler import Config, LocalWorkerManager, RemoteWorkerManager, WorkerManager, load_config
from hostler.app.config import LifeConfig
from hostler.app.process import tagged
from hostler.core.worker import WorkerStartupRequest
from hostler.manager.workers import STATE_TAG
from hostler.testing.cluster import Cluster
from hostler.testing.embedded import assert_manager_truth
from tests.models import models_dir

T = TypeVar("T")
START_S, WORK_S = 120.0, 60.0

PYTHON = "tests.conformance.workers"
FAKES = f"""
[[models]]
name = "echo"
type = "llm"
engine = "fake"
replicas = 2
concurrency = 4
aliases = ["parrot"]
[[models]]
name = "single"
type = "llm"
engine = "fake"
concurrency = 1
open_fields = ["engine_field"]
[[models]]
name = "vectors"
type = "text2vec"
engine = "fake"
[[models]]
name = "ranks"
type = "reranker"
engine = "fake"
[[models]]
name = "talker"
type = "llm"
engine = "python"
concurrency = 2
[models.params]
worker_class = "{PYTHON}:Talker"
[[models]]
name = "py-vectors"
type = "text2vec"
engine = "python"
[models.params]
worker_class = "{PYTHON}:Vectors"
[[models]]
name = "py-ranks"
type = "reranker"
engine = "python"
[models.params]
worker_class = "{PYTHON}:Vectors"
"""


class Rig(ABC):
    """One implementation under test. Use it as a context manager, in the main thread."""

    manager: WorkerManager

    def __init__(self, models: str) -> None:
        """models: TOML of the models it should keep; "" for the default ones."""
        self.models = models
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()

    def __enter__(self) -> "Rig":
        try:
            self.manager = self.run(
                lambda: self._stack.enter_async_context(self.started()), START_S
            )
        except BaseException:
            self.loop.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self._stack.aclose)
        finally:
            self.loop.close()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float = WORK_S) -> T:
        """Run a coroutine in the manager's loop, which runs meanwhile: workers start from there."""

        async def main() -> T:
            async with asyncio.timeout(timeout_s):
                return await work()

        return self.loop.run_until_complete(main())

    @abstractmethod
    def started(self) -> Any:
        """An async context manager around a started manager, every model of which is ready."""

    @abstractmethod
    def another(self) -> Any:
        """An async context manager that gives one more manager, of no models, not started."""


class LocalRig(Rig):
    """LocalWorkerManager embedded in a program: no server, no gateway."""

    @asynccontextmanager
    async def started(self) -> AsyncIterator[WorkerManager]:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            os.symlink(models_dir(), Path(folder) / "models")
            file = Path(folder) / "models.toml"
            file.write_text(self.models)
            models = load_config(file).models
            life = LifeConfig(drain_timeout_s=5.0, kill_grace_s=1.0, backoff_first_s=0.1)
            manager = LocalWorkerManager(Config(state_dir=folder, life=life), models=models)
            async with manager:
                for deployment in manager.wishes.all():
                    await manager.model_startup(WorkerStartupRequest(model=deployment.name))
                yield manager
                await assert_manager_truth(manager)
            assert tagged(STATE_TAG, folder) == {}, "a process outlived its manager"

    @asynccontextmanager
    async def another(self) -> AsyncIterator[WorkerManager]:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            yield LocalWorkerManager(Config(state_dir=folder), models=(), declare=False)


class RemoteRig(Rig):
    """RemoteWorkerManager to a running `hostler up`."""

    @asynccontextmanager
    async def started(self) -> AsyncIterator[WorkerManager]:
        life = "[life]\ndrain_timeout_s = 5.0\nkill_grace_s = 1.0\nbackoff_first_s = 0.1\n"
        self.cluster = Cluster(life + self.models)
        self.cluster.state_dir.mkdir(mode=0o700)
        os.symlink(models_dir(), self.cluster.state_dir / "models")
        await asyncio.to_thread(self.cluster.__enter__)
        try:
            async with RemoteWorkerManager.of_state_dir(self.cluster.state_dir) as manager:
                yield manager
        finally:
            await asyncio.to_thread(self.cluster.close)
            shutil.rmtree(self.cluster.root, ignore_errors=True)

    @asynccontextmanager
    async def another(self) -> AsyncIterator[WorkerManager]:
        yield RemoteWorkerManager(f"{self.cluster.url}/v1", self.cluster.admin_key)


RIGS: dict[str, type[Rig]] = {"local": LocalRig, "remote": RemoteRig}
