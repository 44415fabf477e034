"""A worker whose engine is a child process: what the agent sees of it, and what it costs."""

import asyncio
import os
import signal

import psutil
import pytest

from hostler.core.lifecycle import State
from tests.integration.worker.launch import Controller, Worker, controller, until


async def start(fleet: Controller) -> tuple[Worker, psutil.Process]:
    """Return a ready worker and its engine's own process: the last of the chain below it."""
    worker = await fleet.launch(fleet.spec(engine="fake"))
    await fleet.ready(worker)
    engine = psutil.Process(worker.process.pid)
    while children := engine.children():
        engine = children[0]
    assert engine.pid != worker.process.pid
    return worker, engine


def test_an_engine_that_dies_ends_its_worker_with_the_reason() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker, engine = await start(fleet)
            os.kill(engine.pid, signal.SIGKILL)
            assert await worker.ended() == 1
            record = fleet.registry.record(worker.spec.instance_id)
            assert record is not None
            assert record.instance.state is State.FAILED
            assert record.instance.reason.startswith("engine exited: ")

    asyncio.run(main())


def test_an_engine_that_hangs_is_suspect_until_it_answers_again() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker, engine = await start(fleet)
            os.kill(engine.pid, signal.SIGSTOP)
            try:
                await fleet.reaches(worker, State.SUSPECT, timeout_s=6.0)
                assert (await worker.status())["engine_ok"] is False
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            await fleet.reaches(worker, State.READY, timeout_s=2.0)

    asyncio.run(main())


def test_a_stop_takes_the_engine_with_it() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker, engine = await start(fleet)
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.ended() == 0
            await until(lambda: not engine.is_running(), timeout_s=2.0)

    asyncio.run(main())


def test_a_killed_agent_leaves_no_engine_behind() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker, engine = await start(fleet)
            worker.process.kill()
            await worker.ended()
            await until(lambda: not engine.is_running(), timeout_s=2.0)

    asyncio.run(main())


def test_an_agent_costs_less_than_60_megabytes() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker, _ = await start(fleet)
            used = psutil.Process(worker.process.pid).memory_info().rss
            assert used < 60 * 2**20

    asyncio.run(main())


@pytest.mark.parametrize("params", [{"no_such": 1}])
def test_a_parameter_that_the_engine_does_not_have_is_named(params: dict[str, int]) -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await fleet.launch(fleet.spec(engine="fake", params=params))
            assert await worker.ended() == 1
            assert "no_such" in worker.stderr

    asyncio.run(main())
