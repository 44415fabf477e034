"""SnapshotMirror: the controller's snapshot in another process, kept up step by step."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.background import Background, begin
from hostler.app.telemetry import logger
from hostler.core.change import Change, Picture
from hostler.core.errors import Conflict, HostlerError
from hostler.core.snapshot import Endpoint, Snapshot, Spoken
from hostler.core.trust import IdentityRefused
from hostler.registry.client import endpoint_of
from hostler.registry.elsewhere import at_controller
from hostler.registry.kept import KeptSnapshot
from hostler.wire.client import UpstreamLost, stream
from hostler.wire.identity import ClientContexts
from hostler.wire.sink import UpstreamStatus

log = logger(__name__)

Listener = Callable[[Change], None]

SAVE_AFTER_S = 0.05  # snapshots in a row are saved once
DISMISSED_AFTER_S = 3.0  # of being refused: no passing state of a controller that starts
ONE = (str, Path, Endpoint)
SAVE_SHARE = (
    20.0  # and a save that takes long is not repeated before so many times as long have passed
)


class Gap(Exception):
    """What was told does not follow what is here: ask again, from there."""


class Follower:
    """What one knows of a controller's snapshot. No I/O.

    Steps are taken only where they follow what is here, so no order in which they come, and nothing that
    is lost or repeated, makes a picture that the controller never had.
    """

    def __init__(self) -> None:
        self.picture = Picture()
        self.is_told = False  # by a controller; what was recalled is not
        self._is_doubted = False

    @property
    def place(self) -> str:
        """From where on a controller should tell; "0.0": everything."""
        if self._is_doubted or not self.is_told:
            return "0.0"
        return f"{self.picture.incarnation}.{self.picture.version}"

    def recall(self, snapshot: Snapshot) -> Change:
        """Begin with what another one knew: anything that a controller tells is newer."""
        return self.picture.become(snapshot)

    def take(self, told: Change) -> Change | None:
        """Take a step, or a whole snapshot; return what is other than before, None if it is no news.

        Raises:
            Gap: it is a step, and not from here.
        """
        ours = self.picture
        known, theirs = (ours.incarnation, ours.version), (told.incarnation, told.version)
        if told.since is None:
            if self.is_told and (theirs < known or (theirs == known and not self._is_doubted)):
                return None
            self.is_told, self._is_doubted = True, False
            return ours.become(told)
        if self.is_told and theirs <= known:
            return None
        if not self.is_told or (told.incarnation, told.since) != known:
            raise Gap
        ours.apply(told)
        if told.count is not None and told.count != len(ours.instances):
            self._is_doubted = True
            log.error("mirror.miscounted", told=told.count, here=len(ours.instances))
        return told


class SnapshotMirror:
    """The controller's snapshot in another process. Keeps the last one for as long as it lives."""

    def __init__(
        self,
        where: str | Path | Endpoint | Sequence[Endpoint],
        clock: Callable[[], float],
        kept: KeptSnapshot | None = None,
        tls: ClientContexts | None = None,
    ) -> None:
        """kept: where the last snapshot is left for the next gateway. where, tls: as of RegistryClient;
        of several one leads, and is looked for whenever a watch has ended.
        """
        self._tls = tls
        self.is_dismissed = asyncio.Event()  # the controller wants no more of this gateway
        self._refused_since_s: float | None = None
        self.connected = False
        self._follower = Follower()
        self._kept = kept
        self._saving: asyncio.TimerHandle | None = None
        self._save_after_s = SAVE_AFTER_S
        self._clock = clock
        self._heard_at_s = clock()
        self._endpoints = [endpoint_of(where)] if isinstance(where, ONE) else list(where)
        self._listeners: list[Listener] = []
        self._told = asyncio.Event()
        self._refused = ""  # why the controller is not understood

    @property
    def snapshot(self) -> Snapshot:
        """All of it as it is now. Made when asked for."""
        return self._follower.picture.snapshot()

    @property
    def endpoint(self) -> Endpoint:
        """Where the controller is heard, or is looked for."""
        return self._endpoints[0]

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
            log.warning("mirror.recalled", version=found.version, models=len(found.models))
            self._tell(self._follower.recall(found))

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every change, and now with all there is."""
        self._listeners.append(listener)
        if self._follower.picture.version:
            listener(Picture().become(self.snapshot))

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
                    self._refused_since_s = None
                    if line:
                        self._take(_read(line))
            except Conflict as error:  # of another version: we go on with what we have
                wait_s = 0.5
                if error.message != self._refused:
                    self._refused = error.message
                    log.error("mirror.protocol", why=error.message)
            except Gap:
                log.warning("mirror.gap", here=self._follower.place)
            except UpstreamStatus as error:
                self._note_refusal(error.status)
                self._endpoints.append(self._endpoints.pop(0))
            except (UpstreamLost, HostlerError, TimeoutError, OSError, msgspec.MsgspecError):
                # The controller is away or restarting: what we have stays true until it is back.
                self._endpoints.append(self._endpoints.pop(0))
            self.connected = False
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.5)

    async def _lines(self) -> AsyncIterator[bytes]:
        target = f"/watch?from={self._follower.place}"
        pending: list[bytes] = []
        async for data in stream(
            self.endpoint, "GET", target, timeout_s=2.0, idle_s=5.0, tls=self._tls
        ):
            *lines, rest = data.split(b"\n")
            if lines:
                lines[0] = b"".join([*pending, lines[0]])
                pending = []
            pending.append(rest)
            for line in lines:
                yield line

    def _note_refusal(self, status: int) -> None:
        """Refused by its own name for so long, a gateway was removed."""
        if status != IdentityRefused.http_status:
            return
        now_s = self._clock()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        elif now_s - self._refused_since_s > DISMISSED_AFTER_S and not self.is_dismissed.is_set():
            log.error("mirror.dismissed", why="the controller has removed this gateway")
            self.is_dismissed.set()
            if self._kept is not None:
                self._kept.drop()

    def _take(self, told: Change) -> None:
        if self.endpoint.host_id:
            told = at_controller(told, self.endpoint.host)
        change = self._follower.take(told)
        if change is not None:
            self._told.set()
            self._tell(change)
            if self._kept is not None and self._saving is None:
                loop = asyncio.get_running_loop()
                self._saving = loop.call_later(self._save_after_s, self._save)
        if self._follower.place == "0.0":
            raise Gap

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)

    def _save(self) -> None:
        self._saving = None
        if self._kept is not None:
            began_s = self._clock()
            self._kept.save(self.snapshot)
            self._save_after_s = max(SAVE_AFTER_S, SAVE_SHARE * (self._clock() - began_s))


# Private


def _read(line: bytes) -> Change:
    """Return a step, or a whole snapshot.

    Raises:
        Conflict: of a protocol that is not spoken here.
    """
    try:
        told = msgspec.json.decode(line, type=Change)
        refusal = Spoken(told.protocol).refusal()
    except msgspec.MsgspecError:
        refusal = msgspec.json.decode(line, type=Spoken).refusal()
        if not refusal:
            raise
    if refusal:
        raise Conflict(refusal)
    return told
