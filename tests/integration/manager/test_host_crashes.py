"""SIGKILL of the controller between what is written of a host and what is done about it."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.app.faults import CRASH_VARIABLE, CrashPoint
from hostler.app.tokens import StoredHost
from hostler.core.hosts import HostFacts, Role
from hostler.core.snapshot import Endpoint
from hostler.storage.sql import SqlStore
from hostler.testing.paper_host import PaperHost
from tests.integration.manager.host_rig import WHO

SOON_S = 20.0


class Rig:
    """A controller's process, and the host that it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = HostFacts(name="b", version="1", engines=("fake",))
        control = Endpoint(socket=str(folder / "control.sock"))
        self.host = PaperHost(control, "id-b", facts, ((WHO, b"id-b"),))
        (folder / "s").mkdir()
        store = SqlStore(folder / "hostler.sqlite")
        store.save_host(
            StoredHost(
                host_id="id-b", role=Role.HOST, name="b", facts=facts, address="127.0.0.1", port=1
            )
        )
        store.close()

    @contextmanager
    def controller(self, crash_at: str = "") -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.manager.host_rig", str(self.folder)],
            env=child_environment({CRASH_VARIABLE: crash_at}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()
            process.communicate()

    def launches(self) -> list[str]:
        store = SqlStore(self.folder / "hostler.sqlite")
        try:
            return [one.instance_id for one in store.launches()]
        finally:
            store.close()

    async def until(self, is_true: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + SOON_S
        while not is_true():
            assert time.monotonic() < end_s, f"{what}: {self.host.workers}"
            await asyncio.sleep(0.05)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
        yield Rig(Path(folder))


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def rows(process: subprocess.Popen[str]) -> list[str]:
    tell(process, "rows")
    assert process.stdout is not None
    return process.stdout.readline().split()[1:]


async def dies(process: subprocess.Popen[str]) -> None:
    assert await asyncio.to_thread(process.wait, SOON_S) == -9


def test_F76_an_order_that_was_written_down_is_given_by_the_next_controller(rig: Rig) -> None:
    async def main() -> None:
        async with rig.host.running():
            with rig.controller(CrashPoint.ORDERED) as armed:
                tell(armed, "start m b")
                await dies(armed)
            (launch,) = rig.launches()
            with rig.controller() as next_one:
                await rig.until(lambda: rows(next_one) == ["b:ready"], "ready")
                assert list(rig.host.workers) == [launch] == rig.launches()
                await asyncio.sleep(0.5)
                assert list(rig.host.workers) == [launch], "one process a place"

    asyncio.run(main())


def test_F76_a_record_that_stayed_of_an_instance_that_is_gone_does_no_harm(rig: Rig) -> None:
    async def main() -> None:
        async with rig.host.running():
            with rig.controller(CrashPoint.ORDER_STRUCK) as armed:
                tell(armed, "start m b")
                await rig.until(lambda: rows(armed) == ["b:ready"], "ready")
                tell(armed, "forget m")
                await dies(armed)
            with rig.controller() as next_one:
                await rig.until(lambda: not rig.launches() and not rig.host.workers, "gone")
                assert rows(next_one) == []

    asyncio.run(main())


def test_F76_a_host_that_was_removed_stays_removed(rig: Rig) -> None:
    async def main() -> None:
        async with rig.host.running():
            with rig.controller(CrashPoint.HOST_REMOVED) as armed:
                tell(armed, "start m b")
                await rig.until(lambda: rows(armed) == ["b:ready"], "ready")
                tell(armed, "remove b")
                await dies(armed)
            with rig.controller() as next_one:
                await rig.until(lambda: not rig.launches(), "its launches are forgotten")
                assert (await rig.host.say(rig.host.next_beat())).status == 404
                assert rows(next_one) == [":pending"], "its model waits for a machine"

    asyncio.run(main())
