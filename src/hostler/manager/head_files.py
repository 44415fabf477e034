"""Files of models that lie on the controller's machine alone: handed out there, fetched on the hosts.

A host names an instance that was ordered from it, and never a path: `GET /host/files/INSTANCE` lists the
files of that instance's source, with sizes and SHA-256; `GET /host/files/INSTANCE/NUMBER` sends one of them,
from where `range` says.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.telemetry import logger
from hostler.catalog.address import PathAddress, parse_source
from hostler.catalog.headers import check_files
from hostler.catalog.runner import in_thread
from hostler.catalog.wheel import hash_file
from hostler.core.errors import Conflict, HostlerError, NotFound
from hostler.core.hosts import FILES_PATH, FileFacts, FileList
from hostler.core.launch import Launch
from hostler.registry.watch import KEEPALIVE_S, NDJSON
from hostler.wire.server import Exchange

log = logger(__name__)

CHUNK_BYTES = 256 << 10
READERS_MOST = 4  # of a disk at once; each holds one chunk
STREAMS_MOST = 4  # of one host at once
HASHES_KEPT = 4096
BYTES = ((b"content-type", b"application/octet-stream"),)

Stamp = tuple[str, int, int, int]  # which bytes a path has now: path, inode, size, time of change


class _Listed(msgspec.Struct, frozen=True):
    """What a host was told of one instance."""

    paths: tuple[Path, ...]
    stamps: tuple[Stamp, ...]
    told: FileList


class HeadFiles:
    """Hands out the files of models that were ordered from hosts. `running` holds what is under way."""

    def __init__(
        self, launch: Callable[[str, str], Launch | None], state_dir: Path, models_dir: Path
    ) -> None:
        """launch: what is ordered from a host under an id. state_dir: nothing in it but models leaves."""
        self._launch = launch
        self._state_dir = state_dir
        self._models_dir = models_dir
        self._tasks: asyncio.TaskGroup | None = None
        self._streams: dict[str, set[asyncio.Task[None]]] = {}
        self._listed: dict[str, _Listed] = {}
        self._hashes: dict[Stamp, str] = {}
        self._hashing = asyncio.Lock()
        self._reading = asyncio.Semaphore(READERS_MOST)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for streams in self._streams.values():
                    for stream in streams:
                        stream.cancel()

    def handle(self, exchange: Exchange, host_id: str) -> bool:
        """Answer a host; False: this is none of the addresses here. host_id: by its certificate."""
        request = exchange.request
        if request.method != "GET" or not request.path.startswith(f"{FILES_PATH}/"):
            return False
        instance_id, _, number = request.path.removeprefix(f"{FILES_PATH}/").partition("/")
        streams = self._streams.setdefault(host_id, set())
        if self._tasks is None or len(streams) >= STREAMS_MOST:
            exchange.send_error(Conflict(f"a host may fetch {STREAMS_MOST} files at once"))
            return True
        work = self._send(exchange, host_id, instance_id, number)
        task = self._tasks.create_task(work, name=f"files.{instance_id}")
        streams.add(task)
        task.add_done_callback(streams.discard)
        exchange.on_gone = task.cancel  # type: ignore[assignment]
        return True

    # Private

    async def _send(self, exchange: Exchange, host_id: str, instance_id: str, number: str) -> None:
        try:
            launch = self._launch(host_id, instance_id)
            if launch is None:
                self._listed.pop(instance_id, None)
                raise NotFound(f"no instance {instance_id!r} is ordered from this host")
            if number:
                await self._send_file(exchange, instance_id, number)
            else:
                await self._send_list(exchange, launch)
        except HostlerError as error:
            exchange.send_error(error)
        except OSError as error:
            exchange.send_error(Conflict(f"it cannot be read now: {error.strerror or error}"))
        except Exception as error:  # boundary: one request; the host asks again
            log.error("files.not_sent", instance_id=instance_id, error=error)
        finally:
            if not exchange.is_over:
                exchange.abort()

    async def _send_list(self, exchange: Exchange, launch: Launch) -> None:
        """Say what there is. Hashing takes a while: an empty line each second says that it goes on."""
        path = self._place(launch)
        await in_thread(lambda stop: check_files(path, launch.spec.engine))
        paths = await in_thread(lambda stop: _files(path))
        exchange.start(200, NDJSON, None)
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(_say_that_it_goes_on(exchange), name="files.beat")
            listed = await self._list(path, paths)
            beating.cancel()
        if len(self._listed) >= HASHES_KEPT:
            self._listed.clear()
        self._listed[launch.instance_id] = listed
        exchange.write(msgspec.json.encode(listed.told) + b"\n")
        exchange.end()

    def _place(self, launch: Launch) -> Path:
        """Where the files of a launch lie here. Raises NotFound."""
        address = parse_source(launch.source)[0] if launch.source else None
        if not isinstance(address, PathAddress):
            raise NotFound(f"{launch.spec.model_name}: its files are on no machine of their own")
        try:
            path = Path(address.path).expanduser().resolve(strict=True)
        except (OSError, RuntimeError):
            raise NotFound(f"{address.path} is not on the controller's machine either") from None
        own, models = (one.resolve() for one in (self._state_dir, self._models_dir))
        if path.is_relative_to(own) and not path.is_relative_to(models):
            raise NotFound(f"{address.path} lies in the state folder, which is not handed out")
        return path

    async def _list(self, path: Path, paths: tuple[Path, ...]) -> _Listed:
        stamps, facts = [], []
        for one in paths:
            stamp = _stamp(one)
            stamps.append(stamp)
            name = one.relative_to(path).as_posix() if one != path else path.name
            facts.append(FileFacts(name=name, bytes=stamp[2], sha256=await self._hash(one, stamp)))
        main = "" if path.is_dir() else path.name
        return _Listed(paths, tuple(stamps), FileList(main=main, files=tuple(facts)))

    async def _hash(self, path: Path, stamp: Stamp) -> str:
        async with self._hashing:  # one after the other; who waits finds what was found meanwhile
            found = self._hashes.get(stamp)
            if found is None:
                found = await in_thread(lambda stop: hash_file(path, stop))
                if len(self._hashes) >= HASHES_KEPT:
                    self._hashes.clear()
                self._hashes[stamp] = found
            return found

    async def _send_file(self, exchange: Exchange, instance_id: str, number: str) -> None:
        listed = self._listed.get(instance_id)
        if listed is None:
            raise Conflict("its files are to be listed first")
        if not number.isascii() or not number.isdigit() or int(number) >= len(listed.paths):
            raise NotFound(f"it has {len(listed.paths)} files, and no number {number[:20]!r}")
        path, stamp = listed.paths[int(number)], listed.stamps[int(number)]
        begin = _range_start(exchange, stamp[2])
        with await asyncio.to_thread(path.open, "rb", 0) as file:
            if _stamp(path, file.fileno()) != stamp:
                raise Conflict(f"{path.name} has changed; list the files again")
            left = stamp[2] - begin
            file.seek(begin)
            gate = asyncio.Event()
            gate.set()
            exchange.on_pause, exchange.on_resume = gate.clear, gate.set
            exchange.start(206 if begin else 200, BYTES, left)
            while left and not exchange.is_over:
                await gate.wait()  # the server ends who reads nothing for limits.write_stall_s
                async with self._reading:
                    data = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
                if not data:
                    return  # it has become shorter: the answer is aborted
                left -= len(data)
                exchange.write(data)
            exchange.end()


# Private


def _files(path: Path) -> tuple[Path, ...]:
    """The files of a model, as `check_files` has let them pass."""
    if not path.is_dir():
        return (path,)
    return tuple(one for one in sorted(path.rglob("*")) if one.is_file())


async def _say_that_it_goes_on(exchange: Exchange) -> None:
    while True:
        await asyncio.sleep(KEEPALIVE_S)
        exchange.write(b"\n")


def _stamp(path: Path, descriptor: int | None = None) -> Stamp:
    facts = os.stat(path if descriptor is None else descriptor)
    return (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _range_start(exchange: Exchange, size: int) -> int:
    """Where `range: bytes=N-` begins; 0 without one. Raises Conflict."""
    given = dict(exchange.request.headers).get(b"range", b"").decode("latin-1")
    if not given:
        return 0
    start = given.removeprefix("bytes=").removesuffix("-")
    if not start.isascii() or not start.isdigit() or int(start) >= size:
        raise Conflict(f"range {given[:40]!r}: need bytes=N- within {size} bytes")
    return int(start)
