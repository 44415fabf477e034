"""Keeper: keeps one process running, and can put a fresh one in its place while it serves."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

from hostler.app.config import LifeConfig
from hostler.app.process import ProcessHandle, wait_exit
from hostler.app.pulse import EVERY_S
from hostler.app.telemetry import logger
from hostler.core.errors import Conflict, StartupError
from hostler.manager.logs import last_lines

log = logger(__name__)

RETRY_FIRST_S, RETRY_LAST_S = 0.1, 5.0
STEADY_S = 30.0  # a process that ran so long can start; its deaths are counted anew
END_S = 2.0  # beyond the drain, before what leaves is killed
SOUND_S = 20.0  # a fresh process serves by then, or the one before stays
_LINES_READ = 200  # its own sentence may stand before a long trace
_LINES_TOLD = 10  # of the log of a process that died by a bug
_DEATHS_TOLD = 3  # at a start; the first ones may be the passing kind


class Pulses:
    """The processes that told of themselves since somebody looked."""

    def __init__(self) -> None:
        self._heard: set[int] = set()
        self._awaited: dict[int, asyncio.Event] = {}

    def note(self, pid: int) -> None:
        self._heard.add(pid)
        if (event := self._awaited.get(pid)) is not None:
            event.set()

    def take(self, pid: int) -> bool:
        """Did it tell since the last look?"""
        is_heard = pid in self._heard
        self._heard.discard(pid)
        return is_heard

    async def first(self, handle: ProcessHandle, timeout_s: float) -> bool:
        """Wait until it tells of itself; False when it ends, or takes too long."""
        event = self._awaited[handle.pid] = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                ways = [
                    tasks.create_task(event.wait(), name="supervisor.pulse"),
                    tasks.create_task(wait_exit(handle), name="supervisor.exit"),
                ]
                await asyncio.wait(ways, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in ways:
                    task.cancel()
        finally:
            del self._awaited[handle.pid]
        return event.is_set() and handle.alive()


class Keeper:
    """One place: the process that serves there, and those before it that finish what they have.

    launch: starts a process; True for one that takes the place of another. gone: told of each end.
    """

    def __init__(
        self,
        name: str,
        output: Path,
        life: LifeConfig,
        pulses: Pulses,
        launch: Callable[[bool], ProcessHandle],
        gone: Callable[[ProcessHandle], None] = lambda handle: None,
    ) -> None:
        self.name = name
        self.handle: ProcessHandle | None = None
        self.since_s = 0.0  # Unix time
        self.leaving: dict[ProcessHandle, float] = {}  # with the time of their start
        self._output = output
        self._life = life
        self._pulses = pulses
        self._launch = launch
        self._gone = gone
        self._deaths = 0
        self._refused = ""  # why it could not even be launched
        self._stopping = False

    async def run(self) -> None:
        """Keep it up until `stop`."""
        wait_s = RETRY_FIRST_S
        while not self._stopping:
            try:
                handle = self._begin()
            except StartupError as error:  # as when this user may start no more: it may pass
                self._deaths += 1
                self._refused = error.message
                log.error(f"{self.name}.not_started", why=error.message, again_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_LAST_S)
                continue
            self._refused = ""
            began_s = time.monotonic()
            code, is_sound = await self._attend(handle)
            while self.handle is not handle and self.handle is not None:  # another has its place
                handle, began_s = self.handle, time.monotonic()
                code, is_sound = await self._attend(handle)
            self.handle = None
            self._gone(handle)
            if self._stopping:
                return
            self._deaths += 1
            if is_sound:  # only what cannot even start is held back longer and longer
                wait_s = RETRY_FIRST_S
            if time.monotonic() - began_s > STEADY_S:
                self._deaths = 0
            log.warning(f"{self.name}.died", code=code, restart_in_s=wait_s, log=str(self._output))
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_LAST_S)

    async def renew(self, group: asyncio.TaskGroup) -> None:
        """Start another, and let it take over once it serves; the one before finishes what it has.

        group: holds the task that sees the one before off.

        Raises:
            Conflict: nothing serves here now. StartupError: the new one does not get so far.
        """
        if self.handle is None or self._stopping:
            raise Conflict(f"{self.name} is not running now; it is started again by itself")
        fresh = self._launch(True)
        try:
            is_sound = await self._pulses.first(fresh, SOUND_S)
        except BaseException:  # boundary: whoever asked is gone; nothing half-started may stay
            fresh.kill()
            self._gone(fresh)
            raise
        old = self.handle
        if not is_sound or old is None or self._stopping:
            fresh.kill()
            await wait_exit(fresh, timeout_s=END_S)
            self._gone(fresh)
            raise StartupError(
                f"the new {self.name} ended, or did not serve within {SOUND_S:g} s, so the one before "
                f"goes on: {self.last_words()}"
            )
        self.leaving[old] = self.since_s
        self.handle, self.since_s = fresh, time.time()
        old.signal(signal.SIGHUP)
        group.create_task(self._see_off(old), name=f"see off {self.name}")
        log.info(f"{self.name}.renewed", pid=fresh.pid, before=old.pid)

    def terminate(self) -> list[ProcessHandle]:
        """Ask all of them to end; return them."""
        self._stopping = True
        found = [*self.leaving, *([self.handle] if self.handle is not None else [])]
        for handle in found:
            handle.terminate()
        return found

    def kill(self) -> None:
        for handle in self.terminate():
            handle.kill()

    def failing(self) -> str | None:
        """Return the last words of a process that dies each time it is started; None while it lives."""
        return self.last_words() if self._deaths >= _DEATHS_TOLD else None

    def last_words(self) -> str:
        """What it wrote at its end, or why there is none."""
        if self._refused:
            return self._refused
        lines = last_lines(self._output, _LINES_READ)
        told = [line for line in lines if line.startswith("hostler: ")]
        if told:
            return told[-1].removeprefix("hostler: ")
        shown = "\n".join(f"  {line}" for line in lines[-_LINES_TOLD:])
        return f"the end of {self._output}:\n{shown}"

    # Private

    def _begin(self) -> ProcessHandle:
        self.handle = handle = self._launch(False)
        self.since_s = time.time()
        return handle

    async def _attend(self, handle: ProcessHandle) -> tuple[int | None, bool]:
        """Wait for the end of a process, or for its successor; return its code, and whether it ever
        told of itself.

        One that told and then is silent for too long is ended: nothing it holds can be served any
        more, and the socket it listens on outlives it. Only time in which we ran ourselves counts.
        """
        code, is_sound, silent_s = None, False, 0.0
        while handle.alive() and self.handle is handle:
            code = await wait_exit(handle, timeout_s=EVERY_S)
            if self._pulses.take(handle.pid):
                is_sound, silent_s = True, 0.0
            elif is_sound:
                silent_s += EVERY_S
            if silent_s >= self._life.hung_after_s and handle.kill():
                log.error(f"{self.name}.hangs", pid=handle.pid, silent_s=silent_s)
        return code if code is not None else handle.reap(), is_sound

    async def _see_off(self, old: ProcessHandle) -> None:
        """Wait for one that drains; it has no more than the drain's time."""
        try:
            await wait_exit(old, timeout_s=self._life.drain_timeout_s + END_S)
            if old.alive():
                log.error(f"{self.name}.stays", pid=old.pid)
                old.kill()
                await wait_exit(old, timeout_s=END_S)
        finally:
            self.leaving.pop(old, None)
            self._gone(old)
