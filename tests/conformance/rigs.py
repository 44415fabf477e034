"""Rigs: a started manager of each implementation, and the event loop it lives in."""

import asyncio
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from hostler import (
    Config,
    ControlConfig,
    LocalWorkerManager,
    ModelConfig,
    RayWorkerManager,
    RemoteWorkerManager,
    WorkerManager,
    load_config,
)
from hostler.app.config import LifeConfig
from hostler.app.paths import StatePaths
from hostler.app.process import tagged
from hostler.catalog.catalog import Catalog
from hostler.core.snapshot import Endpoint
from hostler.core.worker import WorkerRunData, WorkerStartupRequest
from hostler.manager.workers import STATE_TAG
from hostler.testing.cluster import LOOPBACK, Cluster
from hostler.testing.embedded import assert_manager_truth
from hostler.testing.host_run import HostRun
from hostler.testing.ray_here import ADDRESS, RayHere
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


LIFE = "[life]\ndrain_timeout_s = 5.0\nkill_grace_s = 1.0\nbackoff_first_s = 0.1\n"


class Rig(ABC):
    """One implementation under test. Use it as a context manager, in the main thread."""

    manager: WorkerManager
    start_s = START_S

    def __init__(self, models: str) -> None:
        """models: TOML of the models it should keep; "" for the default ones."""
        self.models = models
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()

    def __enter__(self) -> "Rig":
        try:
            self.manager = self.run(
                lambda: self._stack.enter_async_context(self.started()), self.start_s
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

    def engine(self, data: WorkerRunData) -> Endpoint:
        """Where the engine of an instance answers a test itself."""
        return Endpoint(socket=data.address.removeprefix("unix:"))


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
            manager = self.manage(Config(state_dir=folder, life=life), models)
            async with manager:
                for deployment in manager.wishes.all():
                    await manager.model_startup(WorkerStartupRequest(model=deployment.name))
                yield manager
                await assert_manager_truth(manager, others=self.others())
            assert tagged(STATE_TAG, folder) == {}, "a process outlived its manager"

    def manage(self, config: Config, models: Sequence[ModelConfig] | None) -> LocalWorkerManager:
        """models: None: the default ones."""
        return LocalWorkerManager(config, models=models)

    def others(self) -> list[Path]:
        """State folders of machines that joined the manager."""
        return []

    @asynccontextmanager
    async def another(self) -> AsyncIterator[WorkerManager]:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            yield LocalWorkerManager(Config(state_dir=folder), models=(), declare=False)


class RemoteRig(Rig):
    """RemoteWorkerManager to a running `hostler up`."""

    @asynccontextmanager
    async def started(self) -> AsyncIterator[WorkerManager]:
        self.cluster = Cluster(LIFE + self.models)
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


class HostsRig(RemoteRig):
    """RemoteWorkerManager to a `hostler up --tls`, all of whose models run on a host that has joined."""

    @asynccontextmanager
    async def started(self) -> AsyncIterator[WorkerManager]:
        self.cluster = Cluster(f"{LIFE}{_placed(self.models)}", joined_at=LOOPBACK)
        self.host = HostRun(config=LIFE)
        self.host.paths.models_dir.rmdir()
        os.symlink(models_dir(), self.host.paths.models_dir)
        self.cluster.truth.others.append(self.host.state_dir)
        with self.host:
            await asyncio.to_thread(self._start)
            try:
                url, key = f"{self.cluster.url}/v1", self.cluster.admin_key
                async with PlacedManager(url, key, ca=self.cluster.ca) as manager:
                    yield manager
            finally:
                await asyncio.to_thread(self.cluster.close)
            assert await asyncio.to_thread(self.host.stop) == 0
            assert self.host.left_behind() == []

    @asynccontextmanager
    async def another(self) -> AsyncIterator[WorkerManager]:
        url, key = f"{self.cluster.url}/v1", self.cluster.admin_key
        yield PlacedManager(url, key, ca=self.cluster.ca)

    def engine(self, data: WorkerRunData) -> Endpoint:
        """Its relay takes no test's word; its socket is on this machine, too."""
        assert data.host_name == "b"
        return Endpoint(socket=str(self.host.paths.engine_socket(data.instance_id)))

    # Private

    def _start(self) -> None:
        """Start the server, let the host join it, and wait for the models there."""
        cluster = self.cluster
        cluster.launch()
        cluster.wait_for(lambda: cluster.answers("/api/v1/status"), START_S, "the server is up")
        record = json.loads((cluster.state_dir / "up.json").read_bytes())
        token = cluster.json("POST", "/api/v1/tokens", {"role": "host"})["token"]
        self.host.start(
            *("host", "join", f"--controller={record['control_url']}", f"--token={token}"),
            *("--name=b", "--labels=at=b", "--address=127.0.0.1", "--port=0"),
        )
        cluster.wait_for(cluster.is_ready, START_S, "every model is ready on the host")


class RayRig(LocalRig):
    """RayWorkerManager in a program; Ray places every model, on its one node."""

    start_s = 3 * START_S

    def __init__(self, models: str) -> None:
        super().__init__(_or_defaults(models))

    @asynccontextmanager
    async def started(self) -> AsyncIterator[WorkerManager]:
        self.ray = RayHere()
        await asyncio.to_thread(self.ray.__enter__)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.ray.env.items():
                patch.setenv(name, value)
            try:
                async with super().started() as manager:
                    yield manager
            finally:
                await asyncio.to_thread(self.ray.close)

    def manage(self, config: Config, models: Sequence[ModelConfig] | None) -> LocalWorkerManager:
        if models is not None:
            models = [msgspec.structs.replace(model, resources=LITTLE) for model in models]
        return FrugalManager(self.ray.address, self._with_port(config), models=models)

    @asynccontextmanager
    async def another(self) -> AsyncIterator[WorkerManager]:
        # a thread of what was stopped may still write its last file
        with tempfile.TemporaryDirectory(
            prefix="hst", dir="/tmp", ignore_cleanup_errors=True
        ) as folder:
            config = self._with_port(Config(state_dir=folder))
            yield FrugalManager(self.ray.address, config, models=(), declare=False)

    def engine(self, data: WorkerRunData) -> Endpoint:
        """Its relay takes no test's word; its socket is on this machine, too."""
        assert data.host_name == f"ray-{ADDRESS}"
        paths = (StatePaths(folder).engine_socket(data.instance_id) for folder in self.others())
        return Endpoint(socket=str(next(path for path in paths if path.exists())))

    def others(self) -> list[Path]:
        return self.ray.host_folders()

    # Private

    def _with_port(self, config: Config) -> Config:
        control = ControlConfig(host=ADDRESS, port=0)
        return msgspec.structs.replace(config, control=control)


class FrugalManager(RayWorkerManager):
    """Whatever it starts asks Ray for little."""

    async def model_startup(
        self, request: WorkerStartupRequest, *, wait: bool = True
    ) -> list[WorkerRunData]:
        if request.engine is not None:
            request = msgspec.structs.replace(request, resources=LITTLE)
        return await super().model_startup(request, wait=wait)


class PlacedManager(RemoteWorkerManager):
    """Whatever it starts, it starts on the host; by its name alone, what was started before."""

    async def model_startup(
        self, request: WorkerStartupRequest, *, wait: bool = True
    ) -> list[WorkerRunData]:
        if request.engine is not None:
            request = msgspec.structs.replace(request, labels=AT)
        return await super().model_startup(request, wait=wait)


AT = {"at": "b"}
LITTLE = {"cpus": 0.01}


def _or_defaults(models: str) -> str:
    """The same models, or the default ones, by their names. models: TOML; "" for these."""
    return models or "".join(
        f'[[models]]\nname = "{entry.name}"\n' for entry in Catalog().default_models()
    )


def _placed(models: str) -> str:
    """The same models, which only the host may run. models: TOML; "" for the default ones."""
    return _or_defaults(models).replace("[[models]]\n", '[[models]]\nlabels = {at = "b"}\n')


RIGS: dict[str, type[Rig]] = {
    "local": LocalRig,
    "remote": RemoteRig,
    "hosts": HostsRig,
    "ray": RayRig,
}
SLOW = frozenset({"hosts", "ray"})  # the rigs whose part of the suite takes over 45 s
# Ray is one a process, and takes that process for its own: its part of the suite runs in one where nothing
# else does (integration/ray/test_contract.py), which sets this.
ONLY_RIG = "HOSTLER_TEST_RIG"


def rigs() -> list[Any]:
    """The parameters of a fixture that is there for each rig."""
    only = os.environ.get(ONLY_RIG, "")
    names = [only] if only else [name for name in RIGS if name != "ray"]
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]
