"""A worker process under test, and the real registry that it reports to."""

import asyncio
import hashlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.config import HeartbeatConfig, child_environment
from hostler.core.fleet import WorkerSpec
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.model import WorkerType
from hostler.core.snapshot import Endpoint
from hostler.registry.expected import Expected
from hostler.registry.record import Record
from hostler.registry.registry import Registry
from hostler.registry.server import RegistryServer
from hostler.wire.client import fetch

START_S = 30.0
RUN = (
    "import sys; from pathlib import Path; from hostler.worker.agent import run_worker_file; "
    "run_worker_file(Path(sys.argv[1]))"
)
HEARTBEAT = HeartbeatConfig(interval_s=0.2, suspect_after_s=1.0, lost_after_s=20.0)


class Worker:
    """One worker process."""

    def __init__(self, spec: WorkerSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.process = process
        self.endpoint = Endpoint(socket=spec.engine_socket)
        self.stderr = ""

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> tuple[int, Any]:
        """Return the status and the decoded JSON of one request to the engine."""
        raw = b"" if body is None else msgspec.json.encode(body)
        kind = ((b"content-type", b"application/json"),) if raw else ()
        answer = await fetch(
            self.endpoint, method, path, headers=(*kind, *headers), body=raw, timeout_s=60.0
        )
        return answer.status, msgspec.json.decode(answer.body)

    async def status(self) -> dict[str, Any]:
        agent = Endpoint(socket=self.spec.agent_socket)
        answer = await fetch(agent, "GET", "/status", timeout_s=5.0)
        found: dict[str, Any] = msgspec.json.decode(answer.body)
        return found

    async def ended(self, timeout_s: float = 15.0) -> int:
        """Wait for the exit; keep what it wrote to stderr."""
        async with asyncio.timeout(timeout_s):
            _, stderr = await self.process.communicate()
        self.stderr = stderr.decode(errors="replace")
        assert self.process.returncode is not None
        return self.process.returncode


class Controller:
    """A registry on a socket. `stop` and `start` are a controller that dies and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "registry.sock"
        self.registry = Registry(HEARTBEAT, time.monotonic)
        self.life = AsyncExitStack()
        self.prefix = secrets.token_hex(3)
        self.specs: list[WorkerSpec] = []
        self.workers: list[Worker] = []

    async def start(self) -> None:
        await self.life.enter_async_context(RegistryServer(self.registry, self.socket).running())

    async def stop(self) -> None:
        """Be gone: nobody listens, and all that was known is forgotten."""
        await self.life.aclose()
        self.registry = Registry(HEARTBEAT, time.monotonic)

    def spec(self, **changes: Any) -> WorkerSpec:
        """A spec for this folder. Give at least engine and params."""
        given = changes.get("instance_id")
        name = (
            given or f"{self.prefix}{len(self.specs)}"
        )  # alone on this machine: processes go by it
        defaults: dict[str, Any] = {
            "instance_id": name,
            "epoch": 1,
            "secret": "hunter2-" * 4,
            "model_name": "m",
            "worker_type": WorkerType.LLM,
            "engine_socket": str(self.folder / f"{name}.sock"),
            "agent_socket": str(self.folder / f"{name}.agent"),
            "registry_socket": str(self.socket),
            "start_timeout_s": START_S,
            "drain_timeout_s": 5.0,
            "concurrency": 4,
        }
        spec = WorkerSpec(**(defaults | changes))
        self.specs.append(spec)
        return spec

    def expect(self, spec: WorkerSpec, *, adopted: bool = False) -> None:
        instance = Instance(
            instance_id=spec.instance_id,
            worker_key=f"{spec.model_name}@{spec.worker_type.value}",
            model_name=spec.model_name,
            epoch=spec.epoch,
        )
        expected = Expected(
            worker_type=spec.worker_type,
            engine=spec.engine,
            secret_hash=hashlib.sha256(spec.secret.encode()).hexdigest(),
            concurrency=spec.concurrency,
        )
        self.registry.add(instance, expected, adopted=adopted)
        self.registry.post(spec.instance_id, Signal.LAUNCH)

    async def launch(self, spec: WorkerSpec) -> Worker:
        self.expect(spec)
        path = self.folder / f"{spec.instance_id}.json"
        path.write_bytes(msgspec.json.encode(spec))
        here = Path(__file__).parents[3]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            RUN,
            str(path),
            env=child_environment({"PYTHONPATH": f"{here / 'src'}{os.pathsep}{here}"}),
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = Worker(spec, process)
        self.workers.append(worker)
        return worker

    async def ready(self, worker: Worker) -> Record:
        """Wait until the worker has registered."""
        record = await self.reaches(worker, State.READY)
        return record

    async def reaches(self, worker: Worker, state: State, timeout_s: float = START_S) -> Record:
        record = self.registry.record(worker.spec.instance_id)
        assert record is not None

        def is_there() -> bool:
            return record.instance.state is state

        await until(lambda: is_there() or worker.process.returncode is not None, timeout_s)
        if not is_there():
            await worker.ended()
        assert is_there(), f"{record.instance.state}: {record.instance.reason}; {worker.stderr}"
        return record


async def until(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Look every 20 ms until it is true.

    Raises:
        TimeoutError: it did not become true in time.
    """
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def controller() -> AsyncIterator[Controller]:
    """A registry that serves, in a short folder; every worker started through it ends with it."""
    with tempfile.TemporaryDirectory(prefix="hw", dir="/tmp") as folder:
        made = Controller(Path(folder))
        try:
            async with made.life:
                await made.start()
                yield made
        finally:
            for worker in made.workers:
                if worker.process.returncode is None:
                    os.kill(worker.process.pid, signal.SIGKILL)
                    await worker.ended()
