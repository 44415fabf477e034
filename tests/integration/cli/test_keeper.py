"""A process is kept running, also when it could not be started for a while."""

import asyncio
import os
import sys
from pathlib import Path

from hostler.app.config import LifeConfig
from hostler.app.process import ProcessHandle, spawn
from hostler.cli.keeper import Keeper, Pulses
from hostler.core.errors import StartupError
from tests.integration.gateway.rig import until


def test_a_process_that_cannot_be_launched_for_a_while_is_launched_later(tmp_path: Path) -> None:
    async def main() -> None:
        tries = 0

        def launch(is_successor: bool) -> ProcessHandle:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise StartupError("no process can be started: too many")
            with (tmp_path / "log").open("ab") as output:
                argv = [sys.executable, "-c", "import time; time.sleep(60)"]
                return spawn(argv, env=dict(os.environ), stdout=output.fileno())

        keeper = Keeper("gateway", tmp_path / "log", LifeConfig(), Pulses(), launch)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(keeper.run())
            await until(lambda: keeper.failing() is not None, 10.0)
            assert keeper.failing() == "no process can be started: too many"
            await until(lambda: keeper.handle is not None, 10.0)
            assert keeper.last_words() != "no process can be started: too many"
            keeper.kill()
            await task
        assert tries == 4

    asyncio.run(main())
