"""A simulated fleet on a real registry's socket: registering, losing one, a controller that is another."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.config import HeartbeatConfig
from hostler.core.change import Change
from hostler.core.lifecycle import State
from hostler.core.snapshot import PROTOCOL, Endpoint, KeyView, Snapshot
from hostler.registry.mirror import SnapshotMirror
from hostler.registry.registry import Registry
from hostler.registry.server import RegistryServer
from hostler.testing.fleet import Fleet, expect_fleet, most_in_a_second, name_of
from hostler.wire.client import stream
from tests.integration.worker.launch import until

MOST = 400
COUNT = 1000


@asynccontextmanager
async def serving(folder: Path, incarnation: int, count: int) -> AsyncIterator[Registry]:
    heartbeat = HeartbeatConfig(most_per_s=MOST)
    registry = Registry(heartbeat, time.monotonic, incarnation=incarnation)
    expect_fleet(registry, count, 10, adopted=incarnation > 1)
    server = RegistryServer(registry, folder / "registry.sock")
    async with registry.running(), server.running():
        yield registry


def ready_in(snapshot: Snapshot) -> int:
    return sum(one.state is State.READY for one in snapshot.instances)


def test_F37_a_thousand_workers_do_not_stampede_a_restarted_controller_and_no_gateway_loses_one() -> (
    None
):
    async def main(folder: Path) -> None:
        socket = folder / "registry.sock"
        fleet = Fleet(socket, COUNT, 10, folder)
        mirror, fewest = SnapshotMirror(socket, time.monotonic), [COUNT]
        async with asyncio.TaskGroup() as tasks, mirror.running():
            playing = tasks.create_task(fleet.run())
            async with serving(folder, 1, COUNT):
                await until(lambda: ready_in(mirror.snapshot) == COUNT, 40.0)
            mirror.listen(lambda change: fewest.append(ready_in(mirror.snapshot)))
            first, fleet.registered_s = fleet.registered_s, []
            async with serving(folder, 2, COUNT) as registry:
                await until(lambda: mirror.snapshot.incarnation == 2, 40.0)
                assert not registry.unheard
                await fleet.leave(7)
                await until(lambda: ready_in(mirror.snapshot) == COUNT - 1)
            playing.cancel()
        assert len(fleet.registered_s) == len(first) == COUNT
        assert max(map(most_in_a_second, (first, fleet.registered_s))) <= 2 * MOST
        assert min(fewest[1:]) >= COUNT - 1
        assert name_of(7) not in {one.instance_id for one in mirror.snapshot.instances}

    folder = Path(tempfile.mkdtemp(prefix="hsf", dir="/tmp"))
    try:
        asyncio.run(main(folder))
    finally:
        shutil.rmtree(folder)


async def lines(folder: Path, target: str, count: int) -> list[bytes]:
    """The first lines of a watch that say something."""
    found, pending = [], b""
    endpoint = Endpoint(socket=str(folder / "registry.sock"))
    async for data in stream(endpoint, "GET", target, timeout_s=5.0, idle_s=5.0):
        *whole, pending = (pending + data).split(b"\n")
        found += [line for line in whole if line]
        if len(found) >= count:
            return found[:count]
    return found


def test_F78_a_gateway_of_the_protocol_before_is_told_whole_snapshots() -> None:
    async def main(folder: Path) -> None:
        async with serving(folder, 1, 3) as registry:
            (first,) = await lines(folder, "/watch", 1)
            before = msgspec.json.decode(first, type=Snapshot)
            assert (before.protocol, len(before.instances)) == (PROTOCOL - 1, 3)
            watching = asyncio.ensure_future(lines(folder, "/watch", 2))
            resumed = asyncio.ensure_future(lines(folder, f"/watch?from=1.{registry.version}", 1))
            strange = asyncio.ensure_future(lines(folder, "/watch?from=7.1", 1))
            await asyncio.sleep(0.2)
            registry.set_keys([KeyView(key_id="k", secret_hash="", scopes=())])
            second = msgspec.json.decode((await watching)[1], type=Snapshot)
            assert (second.version, second.keys) == (registry.version, registry.snapshot.keys)
            (step,) = [msgspec.json.decode(line, type=Change) for line in await resumed]
            assert (step.protocol, step.since, step.instances) == (PROTOCOL, before.version, ())
            (whole,) = [msgspec.json.decode(line, type=Change) for line in await strange]
            assert (whole.since, len(whole.instances)) == (None, 3)

    folder = Path(tempfile.mkdtemp(prefix="hsf", dir="/tmp"))
    try:
        asyncio.run(main(folder))
    finally:
        shutil.rmtree(folder)


def test_a_watcher_that_does_not_read_is_told_what_it_missed_at_once() -> None:
    async def main(folder: Path) -> None:
        async with serving(folder, 1, 2000) as registry:
            reader, writer = await asyncio.open_unix_connection(
                str(folder / "registry.sock"), limit=2**26
            )
            writer.write(b"GET /watch?from=0.0 HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(0.3)  # some 600 kB wait, which nobody reads
            for number in range(50):
                registry.set_keys([KeyView(key_id=f"k{number}", secret_hash="", scopes=())])
                await asyncio.sleep(0.01)
            told: list[Change] = []
            while not told or told[-1].version < registry.version:
                line = await asyncio.wait_for(reader.readline(), 5.0)
                if line.startswith(b"{"):
                    told.append(msgspec.json.decode(line, type=Change))
            assert told[0].since is None
            assert [one.since for one in told[1:]] == [one.version for one in told[:-1]]
            writer.close()

    folder = Path(tempfile.mkdtemp(prefix="hsf", dir="/tmp"))
    try:
        asyncio.run(main(folder))
    finally:
        shutil.rmtree(folder)
