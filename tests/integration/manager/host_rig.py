"""A controller in a process of its own, for tests that kill it: run as a module, with a folder.

It keeps its store in the folder, answers hosts on `control.sock` there, and takes orders, a line each.
"""

import asyncio
import sys
from pathlib import Path

from hostler import Config, LocalWorkerManager, WorkerStartupRequest, WorkerType
from hostler.app.config import HeartbeatConfig, HttpLimits, LifeConfig
from hostler.core.worker import WorkerShutdownRequest
from hostler.storage.sql import SqlStore
from hostler.wire.server import Exchange, HttpServer

WHO = b"x-test-identity"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def serve(folder: Path) -> None:
    """Obey until the input ends, or a crash point is passed."""
    life = LifeConfig(drain_timeout_s=2.0, kill_grace_s=1.0, backoff_first_s=0.05)
    beats = HeartbeatConfig(interval_s=0.2, suspect_after_s=0.6, lost_after_s=1.5)
    config = Config(state_dir=str(folder / "s"), life=life, heartbeat=beats)
    store = SqlStore(folder / "hostler.sqlite")
    manager = LocalWorkerManager(config, store=store, models=(), declare=False)
    await manager.start()

    def handle(exchange: Exchange) -> None:
        who = dict(exchange.request.headers).get(WHO, b"").decode()
        manager.machines.routes.handle(exchange, who, "127.0.0.1")

    server = HttpServer(handle, limits=HttpLimits(), name="control")
    await server.listen_unix(folder / "control.sock")
    say("up")
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case "start", name, host:
                request = WorkerStartupRequest(
                    model=name, worker_type=WorkerType.LLM, engine="fake", host=host
                )
                await manager.model_startup(request, wait=False)
            case "forget", name:
                order = WorkerShutdownRequest(model=name, delete_after=True)
                await manager.model_shutdown(order, wait=False)
            case "remove", name:
                await manager.machines.remove(name, force=True)
            case ["rows"]:
                rows = [f"{one.host_name}:{one.state.value}" for one in manager.run_data()]
                say(" ".join(["rows", *rows]))
    await manager.abandon()
    store.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
