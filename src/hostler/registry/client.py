"""The registry seen from another process: an agent that reports to it, a mirror that watches it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.background import Background, begin
from hostler.app.telemetry import logger
from hostler.core.errors import (
    Conflict,
    ControllerUnavailable,
    HostlerError,
    StaleEpoch,
    UnknownInstance,
)
from hostler.core.fleet import Beat, BeatAnswer, Departure, Doubt, Registration
from hostler.core.scaling import DemandReport
from hostler.core.snapshot import Endpoint, Snapshot, Spoken
from hostler.core.usage import UsageBatch
from hostler.registry.elsewhere import at_controller
from hostler.registry.kept import KeptSnapshot
from hostler.wire.client import Pool, Response, UpstreamLost, fetch, stream
from hostler.wire.identity import ClientContexts
from hostler.wire.sink import UpstreamStatus

log = logger(__name__)

_RAISED: Mapping[int, type[HostlerError]] = {409: StaleEpoch, 410: UnknownInstance}
_JSON = ((b"content-type", b"application/json"),)
IDLE_S = 60.0  # of a connection to another machine; a server of ours closes after 75


class RegistryClient:
    """How a worker agent reports, and a gateway what it counted."""

    def __init__(
        self,
        where: str | Path | Endpoint,
        *,
        timeout_s: float = 2.0,
        tls: ClientContexts | None = None,
    ) -> None:
        """where: the registry's socket, or the control port of another machine. tls: who we are there."""
        self._endpoint = _endpoint(where)
        self._timeout_s = timeout_s
        self._tls = tls
        self._pool: Pool | None = None  # to another machine a connection is kept

    async def register(self, registration: Registration) -> BeatAnswer:
        """Say that the worker has loaded.

        Raises:
            StaleEpoch, UnknownInstance: this process is not wanted (any more).
            ControllerUnavailable: nobody answers; try again.
        """
        return await self._post("/register", registration)

    async def beat(self, beat: Beat) -> BeatAnswer:
        """Say that the worker lives. Raises as `register`."""
        return await self._post("/beat", beat)

    async def deregister(self, departure: Departure) -> None:
        """Say that the worker leaves. Raises as `register`."""
        await self._post("/deregister", departure)

    async def doubt(self, doubt: Doubt) -> None:
        """Say that an engine takes requests and says nothing. Raises as `register`."""
        await self._post("/doubt", doubt)

    async def demand(self, report: DemandReport) -> None:
        """Say what there is to do of models that are scaled. Raises as `register`."""
        await self._post("/demand", report)

    async def report_usage(self, batch: UsageBatch) -> None:
        """Say what was used; when this returns it is kept.

        Raises:
            ControllerUnavailable: nobody answers, or it could not be kept now; send the same again.
        """
        answer = await self._send("/usage", batch)
        if answer.status != 200:
            raise ControllerUnavailable(_error_of(answer.body)[0])

    def is_held(self) -> bool:
        """Whether a process holds the registry's socket, answering or not. Does not block."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self._endpoint.socket)
            except BlockingIOError:
                return True  # more connections wait there than may
            except OSError:
                return False
        return True

    async def close(self) -> None:
        """Close the connection that is kept."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    # Private

    async def _post(self, path: str, message: msgspec.Struct) -> BeatAnswer:
        answer = await self._send(path, message)
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=BeatAnswer)
        text, code = _error_of(answer.body)
        if code == Conflict.code:
            raise UnknownInstance(text)
        raise _RAISED.get(answer.status, ControllerUnavailable)(text)

    async def _send(self, path: str, message: msgspec.Struct) -> Response:
        if self._endpoint.host_id and self._pool is None:
            self._pool = Pool(
                self._endpoint, connect_timeout_s=self._timeout_s, idle_s=IDLE_S, tls=self._tls
            )
        try:
            return await fetch(
                self._endpoint,
                "POST",
                path,
                headers=_JSON,
                body=msgspec.json.encode(message),
                timeout_s=self._timeout_s,
                pool=self._pool,
            )
        except (UpstreamLost, TimeoutError, OSError) as error:
            if self._pool is not None:
                self._pool.drop_idle()
            raise ControllerUnavailable() from error


Listener = Callable[[Snapshot], None]


SAVE_AFTER_S = 0.05  # snapshots in a row are saved once


class SnapshotMirror:
    """The controller's snapshot in another process. Keeps the last one for as long as it lives."""

    def __init__(
        self,
        where: str | Path | Endpoint,
        clock: Callable[[], float],
        kept: KeptSnapshot | None = None,
        tls: ClientContexts | None = None,
    ) -> None:
        """kept: where the last snapshot is left for the next gateway. where, tls: as of RegistryClient."""
        self._tls = tls
        self.snapshot = Snapshot()
        self.connected = False
        self._kept = kept
        self._is_recalled = False  # what we have is another's, and anything heard is newer
        self._saving: asyncio.TimerHandle | None = None
        self._clock = clock
        self._heard_at_s = clock()
        self._endpoint = _endpoint(where)
        self._listeners: list[Listener] = []
        self._told = asyncio.Event()
        self._refused = ""  # why the controller is not understood

    @property
    def age_s(self) -> float:
        """Seconds since the controller was last heard."""
        return self._clock() - self._heard_at_s

    async def first_snapshot(self) -> None:
        """Wait until the controller has told something."""
        await self._told.wait()

    def recall(self) -> None:
        """Go on with what a gateway before us left, as long as no controller tells anything."""
        if self._kept is None or self._told.is_set():
            return
        found = self._kept.load()
        if found is not None:
            self._is_recalled = True
            log.warning("mirror.recalled", version=found.version, models=len(found.models))
            self._publish(found)

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every newer snapshot, and now if there is one."""
        self._listeners.append(listener)
        if self.snapshot.version:
            listener(self.snapshot)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            watch = begin(tasks, Background.MIRROR, self._watch())
            yield
            watch.cancel()

    # Private

    async def _watch(self) -> None:
        wait_s = 0.05
        while True:
            try:
                async for line in self._lines():
                    wait_s = 0.05
                    self.connected = True
                    self._heard_at_s = self._clock()
                    if line:
                        self._take(_read(line))
            except Conflict as error:  # of another version: we go on with what we have
                wait_s = 0.5
                if error.message != self._refused:
                    self._refused = error.message
                    log.error("mirror.protocol", why=error.message)
            except (
                UpstreamLost,
                UpstreamStatus,
                HostlerError,
                TimeoutError,
                OSError,
                msgspec.MsgspecError,
            ):
                pass  # the controller is away or restarting: what we have stays true until it is back
            self.connected = False
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.5)

    async def _lines(self) -> AsyncIterator[bytes]:
        pending = b""
        async for data in stream(
            self._endpoint, "GET", "/watch", timeout_s=2.0, idle_s=5.0, tls=self._tls
        ):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line

    def _take(self, snapshot: Snapshot) -> None:
        ours = self.snapshot
        known = (ours.incarnation, ours.version)
        if not self._is_recalled and (snapshot.incarnation, snapshot.version) <= known:
            return
        self._is_recalled = False
        if self._endpoint.host_id:
            snapshot = at_controller(snapshot, self._endpoint.host)
        self._told.set()
        self._publish(snapshot)
        if self._kept is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._save)

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for listener in self._listeners:
            listener(snapshot)

    def _save(self) -> None:
        self._saving = None
        if self._kept is not None:
            self._kept.save(self.snapshot)


def _endpoint(where: str | Path | Endpoint) -> Endpoint:
    return where if isinstance(where, Endpoint) else Endpoint(socket=str(where))


def _read(line: bytes) -> Snapshot:
    """Return a snapshot.

    Raises:
        Conflict: of a protocol that is not spoken here.
    """
    try:
        snapshot = msgspec.json.decode(line, type=Snapshot)
        refusal = Spoken(snapshot.protocol).refusal()
    except msgspec.MsgspecError:
        refusal = msgspec.json.decode(line, type=Spoken).refusal()
        if not refusal:
            raise
    if refusal:
        raise Conflict(refusal)
    return snapshot


def _error_of(body: bytes) -> tuple[str, str]:
    try:
        error: Any = msgspec.json.decode(body)["error"]
        return str(error["message"]), str(error["code"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "the controller's answer cannot be read", ""
