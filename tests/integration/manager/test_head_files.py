"""Files that lie on the controller's machine alone: what a host gets of them, and what it never does."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from unittest.mock import patch

import pytest

from hostler.app.config import HttpLimits
from hostler.catalog.address import folder_name
from hostler.catalog.progress import FetchLimits, FetchPhase, FetchProgress
from hostler.catalog.store import read_manifest
from hostler.core.deployment import Deployment
from hostler.core.errors import (
    ControllerUnavailable,
    HostlerError,
    InsufficientStorage,
    ModelSourceError,
    Standby,
)
from hostler.core.fleet import WorkerSpec
from hostler.core.launch import Launch
from hostler.core.model import WorkerType
from hostler.core.snapshot import Endpoint
from hostler.manager.controllers import Controllers
from hostler.manager.head_fetch import HeadFetch
from hostler.manager.head_files import CHUNK_BYTES, HeadFiles
from hostler.wire.client import Pool, fetch
from hostler.wire.server import Exchange, HttpServer
from tests.disks import small_disk
from tests.unit.catalog.files import gguf

BIG = gguf() + os.urandom(12 * CHUNK_BYTES)


class Rig:
    """A controller that hands out files, and a host that fetches them, over a socket that may break."""

    def __init__(self, root: Path) -> None:
        self.head, self.state, self.models = root / "head", root / "s", root / "host"
        for folder in (self.head, self.state):
            folder.mkdir()
        self.launches: dict[tuple[str, str], Launch] = {}
        self.files = HeadFiles(
            lambda *which: self.launches.get(which), self.state, self.state / "models"
        )
        self.host_id = "host0001"
        self.cut_after: list[int] = []  # bytes of an answer, then its connection is cut
        self.asked: list[tuple[str, str]] = []  # path and range
        self.standing_by = 0  # so many requests are answered by one that does not lead
        self.reports: list[FetchProgress] = []
        self.on_ask: Callable[[str], None] = lambda path: None
        self.socket = root / "c.sock"
        controllers = Controllers(
            [Endpoint(socket=str(self.socket))],
            lambda endpoint: Pool(endpoint, connect_timeout_s=1.0, idle_s=5.0),
        )
        self.controllers = controllers
        self.fetcher = HeadFetch(controllers, self.models, limits=FetchLimits(reserve_bytes=0))

    def order(self, source: Path | str, instance_id: str = "i1", engine: str = "llama.cpp") -> None:
        """The controller orders a model from the host."""
        spec = WorkerSpec(
            instance_id=instance_id, epoch=1, secret="", model_name="m", worker_type=WorkerType.LLM,
            engine=engine, engine_socket="", agent_socket="", registry_socket="",
        )  # fmt: skip
        self.launches["host0001", instance_id] = Launch(
            instance_id=instance_id, worker_key="m@llm", replica=0, epoch=1, generation=1,
            secret_hash="", spec=spec, host_id="host0001", source=str(source),
        )  # fmt: skip

    async def fetch(self, source: Path | str, instance_id: str = "i1") -> Path:
        engine = self.launches["host0001", instance_id].spec.engine if self.launches else "fake"
        deployment = Deployment(
            name="m", worker_type=WorkerType.LLM, engine=engine, source=str(source)
        )
        return await self.fetcher.fetch(deployment, instance_id, self.reports.append)

    async def fails(self, source: Path | str, kind: type[HostlerError] = ModelSourceError) -> str:
        with pytest.raises(kind) as caught:
            await self.fetch(source)
        return caught.value.message

    def handle(self, exchange: Exchange) -> None:
        given = dict(exchange.request.headers).get(b"range", b"").decode()
        self.asked.append((exchange.request.path, given))
        self.on_ask(exchange.request.path)
        if self.standing_by:
            self.standing_by -= 1
            exchange.send_error(Standby("another one leads"))
            return
        assert self.files.handle(exchange, self.host_id)
        if exchange.request.path.count("/") == 4 and self.cut_after:
            self._cut(exchange, self.cut_after.pop(0))

    def _cut(self, exchange: Exchange, after: int) -> None:
        """End the answer when so much of it was written."""
        left, connection = after, exchange._connection
        assert connection is not None
        transport, write = connection.transport, connection.transport.write

        def some(data: bytes) -> None:
            nonlocal left
            left -= len(data)
            write(data)
            if left < 0:
                transport.close()

        transport.write = some  # type: ignore[assignment, method-assign]

    def names(self) -> set[str]:
        """What lies in the host's folder, but for locks and empty folders."""
        found = (one.relative_to(self.models) for one in self.models.rglob("*") if one.is_file())
        return {str(one) for one in found if one.parts[0] not in (".locks", ".staging")}


def in_rig(test: Callable[[Rig], Awaitable[None]]) -> Callable[[Path], None]:
    """Run a test with a controller that answers."""

    @wraps(test)
    def call(tmp_path: Path) -> None:
        async def main() -> None:
            rig = Rig(tmp_path)
            server = HttpServer(rig.handle, limits=HttpLimits(), name="control")
            async with rig.files.running():
                await server.listen_unix(rig.socket)
                try:
                    await test(rig)
                finally:
                    await rig.controllers.renew()
                    await server.close(0.0)

        asyncio.run(asyncio.wait_for(main(), 60))

    del call.__wrapped__
    return call


@in_rig
async def test_a_file_comes_whole_checked_and_once(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(BIG)
    rig.order(source)
    path = await rig.fetch(source)
    assert path.read_bytes() == BIG
    assert path == rig.models / folder_name(str(source)) / "m.gguf"
    manifest = read_manifest(path.parent)
    assert manifest is not None
    assert (manifest.source, manifest.main) == (str(source), "m.gguf")
    assert rig.reports[0].total_bytes == len(BIG) == rig.reports[-1].done_bytes
    assert {one.phase for one in rig.reports} == {FetchPhase.DOWNLOADING, FetchPhase.DONE}
    rig.asked.clear()
    assert await rig.fetch(source) == path
    assert rig.asked == [("/host/files/i1", "")], "it is the same still: nothing comes again"


@in_rig
async def test_a_folder_comes_with_all_its_files(rig: Rig) -> None:
    source = rig.head / "model"
    (source / "deep").mkdir(parents=True)
    (source / "m.gguf").write_bytes(gguf())
    (source / "deep" / "config.json").write_bytes(b"{}")
    (source / "empty.txt").write_bytes(b"")
    (source / "same.gguf").symlink_to("m.gguf")
    rig.order(source)
    path = await rig.fetch(source)
    assert (path / "deep" / "config.json").read_bytes() == b"{}"
    assert (path / "same.gguf").read_bytes() == gguf()
    assert (path / "empty.txt").read_bytes() == b""


@in_rig
async def test_a_line_that_breaks_again_and_again_costs_only_what_was_under_way(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(BIG)
    rig.order(source)
    rig.cut_after = [CHUNK_BYTES * 2, CHUNK_BYTES * 3, 10]
    with patch(
        "hostler.manager.head_fetch.FRUITLESS_MOST", 2
    ):  # those that brought a byte count for none
        assert (await rig.fetch(source)).read_bytes() == BIG
    starts = [given for path, given in rig.asked if path.endswith("/0")]
    assert len(starts) == 4
    assert all(given.startswith("bytes=") for given in starts[1:]), starts


@in_rig
async def test_a_file_that_is_changed_meanwhile_or_later_comes_as_it_is_then(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(BIG)
    rig.order(source)

    def change(path: str) -> None:
        if path.endswith("/0"):
            rig.on_ask = lambda path: None
            source.write_bytes(gguf())

    rig.on_ask = change
    assert (await rig.fetch(source)).read_bytes() == gguf()
    source.write_bytes(BIG)
    path = await rig.fetch(source)
    assert path.read_bytes() == BIG, "the copy was old"
    assert len(rig.names()) == 2, "a manifest and the file"


@in_rig
async def test_only_what_was_ordered_from_this_very_host_and_is_a_model_leaves(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(gguf())
    rig.order(source)
    rig.host_id = "host0002"
    assert "no instance 'i1' is ordered from this host" in await rig.fails(source)
    rig.host_id = "host0001"
    (rig.head / "secret").write_bytes(b"password")
    rig.order(rig.head / "secret")
    assert "needs a .gguf file" in await rig.fails(rig.head / "secret")
    (rig.head / "liar.gguf").write_bytes(b"password")
    rig.order(rig.head / "liar.gguf")
    await rig.fails(rig.head / "liar.gguf")
    (rig.head / "folder").mkdir()
    (rig.head / "folder" / "m.gguf").write_bytes(gguf())
    (rig.head / "folder" / "x.gguf").symlink_to(rig.head / "secret")
    rig.order(rig.head / "folder")
    assert "leaves the model folder" in await rig.fails(rig.head / "folder")
    (rig.state / "key.gguf").write_bytes(gguf())
    rig.order(rig.state / "key.gguf")
    assert "state folder" in await rig.fails(rig.state / "key.gguf")
    rig.order(rig.head / "gone.gguf")
    assert "not on the controller's machine either" in await rig.fails(rig.head / "gone.gguf")
    rig.order("hf:a/b#m.gguf")
    assert "on no machine of their own" in await rig.fails("hf:a/b#m.gguf")
    assert not rig.models.exists()


@in_rig
async def test_an_address_that_was_made_up_gets_nothing(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(gguf())
    rig.order(source)
    pool = rig.controllers.pool()

    async def status(path: str, *headers: tuple[bytes, bytes]) -> int:
        path = f"/host/files/{path}"
        found = await fetch(pool.endpoint, "GET", path, headers=headers, timeout_s=5.0, pool=pool)
        return found.status

    assert await status("i1/0") == 409, "nothing was listed yet"
    assert await status("i1") == 200
    for path in ("i1/1", "i1/-1", "i1/m.gguf", "i1/0/1", "i2", "i2/0"):
        assert await status(path) == 404, path
    for given in (b"bytes=9999999-", b"bytes=0-5", b"lines=1-", b"bytes=-5"):
        assert await status("i1/0", (b"range", given)) == 409, given
    assert await status("i1/0", (b"range", b"bytes=4-")) == 206


@in_rig
async def test_a_controller_that_is_away_costs_who_has_the_files_nothing(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(gguf())
    rig.order(source)
    kept = await rig.fetch(source)
    away = Controllers(
        [Endpoint(socket=str(rig.socket) + "x")],
        lambda endpoint: Pool(endpoint, connect_timeout_s=0.2, idle_s=1.0),
    )
    rig.fetcher = HeadFetch(away, rig.models, tries=2)
    assert await rig.fetch(source) == kept
    assert "does not answer" in await rig.fails(rig.head / "other.gguf", ControllerUnavailable)
    await away.renew()


@in_rig
async def test_a_controller_that_stands_by_or_starts_is_waited_for(rig: Rig) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(gguf())
    rig.order(source)
    rig.standing_by = 2
    assert (await rig.fetch(source)).read_bytes() == gguf()
    assert len(rig.asked) == 4


@in_rig
async def test_a_disk_without_room_is_told_before_or_while_it_fills_and_keeps_nothing(
    rig: Rig,
) -> None:
    source = rig.head / "m.gguf"
    source.write_bytes(BIG)
    rig.order(source)
    with small_disk(rig.models, 2 << 20):
        told = await rig.fails(source, InsufficientStorage)
        assert "this fetch needs" in told
        assert rig.names() == set()
