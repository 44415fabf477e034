"""Supervisor: keeps the controller and the gateway of one state folder running.

It owns the lock and the listening socket, so a gateway that dies loses no connection that waits.
It knows nothing of models.
"""

import asyncio
import fcntl
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import msgspec

from hostler.app.config import Config, child_environment, write_settings
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, spawn, sweep, tagged, wait_exit
from hostler.app.pulse import EVERY_S, hearing
from hostler.app.telemetry import logger
from hostler.cli.target import UpRecord
from hostler.core.errors import StartupError
from hostler.manager.logs import last_lines
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG

log = logger(__name__)

_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 5.0
_STEADY_S = 30.0  # a process that ran so long can start; its deaths are counted anew
_GATEWAY_END_S = 2.0
_LINES_READ = 200  # its own sentence may stand before a long trace
_LINES_TOLD = 10  # of the log of a process that died by a bug
_DEATHS_TOLD = 3  # at a start; the first ones may be the passing kind


class StateLock:
    """One `hostler up` a state folder."""

    def __init__(self, paths: StatePaths) -> None:
        self._paths = paths
        self._file: IO[str] | None = None

    def __enter__(self) -> "StateLock":
        """Raises StartupError when another process holds the folder, and says which."""
        self._file = self._paths.lock.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise StartupError(
                f"state folder {self._paths.state_dir} is held by another hostler up{self._holder()}; "
                "stop it, or choose another folder with --state-dir"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _holder(self) -> str:
        try:
            record = msgspec.json.decode(self._paths.up_record.read_bytes(), type=UpRecord)
        except (OSError, msgspec.MsgspecError):
            return ""
        return f" (pid {record.pid}, at {record.url})"


def take_over(paths: StatePaths) -> None:
    """End what an earlier supervisor of this folder left behind, but for its workers.

    The controller is killed (it is crash-only, and the next one adopts its workers); the gateway is
    asked to finish its streams, and stops listening at once.
    """
    state = str(paths.state_dir)
    ours = tagged(STATE_TAG, state)
    for pid in tagged(ROLE_TAG, "gateway"):
        if pid in ours and (handle := ProcessHandle.of(pid)) is not None:
            handle.terminate()
            log.info("takeover", role="gateway", pid=pid)
    for pid in sweep(STATE_TAG, state, having=ROLE_TAG, but_not=frozenset({"gateway", "worker"})):
        log.info("takeover", role="controller", pid=pid)


class Supervisor:
    """The two processes of one state folder."""

    def __init__(self, paths: StatePaths, config: Config, sock: socket.socket) -> None:
        self._paths = paths
        self._config = config
        self._sock = sock
        self._settings = paths.run_dir / "settings.json"
        self._running: dict[str, ProcessHandle] = {}
        self._heard: set[int] = set()  # the processes that told of themselves since we looked
        self._stopping = False
        self._deaths: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep both processes up while the block lasts. The block ends them with `stop`."""
        write_settings(self._config, self._settings)
        async with (
            hearing(self._paths.pulse_socket, self._heard.add),
            asyncio.TaskGroup() as tasks,
        ):
            keepers = [
                tasks.create_task(self._keep("controller"), name="keep controller"),
                tasks.create_task(self._keep("gateway"), name="keep gateway"),
            ]
            try:
                yield
            finally:
                self._stopping = True
                for keeper in keepers:
                    keeper.cancel()
                self.kill()

    def failing(self, role: str) -> str | None:
        """Return the last words of a process that dies each time it is started; None while it lives."""
        if self._deaths[role] < _DEATHS_TOLD:
            return None
        lines = last_lines(self._log(role), _LINES_READ)
        told = [line for line in lines if line.startswith("hostler: ")]
        if told:
            return told[-1].removeprefix("hostler: ")
        shown = "\n".join(f"  {line}" for line in lines[-_LINES_TOLD:])
        return f"the end of {self._log(role)}:\n{shown}"

    async def stop(self) -> None:
        """Let requests finish, then stop the workers, then the rest. Each step has a deadline."""
        self._stopping = True
        life = self._config.life
        if (gateway := self._running.get("gateway")) is not None:
            gateway.terminate()
            await wait_exit(gateway, timeout_s=life.drain_timeout_s + _GATEWAY_END_S)
        if (controller := self._running.get("controller")) is not None:
            controller.terminate()
            await wait_exit(
                controller, timeout_s=life.drain_timeout_s + life.kill_grace_s + _GATEWAY_END_S
            )

    def kill(self) -> None:
        """End everything of this state folder at once, workers and engines included."""
        self._stopping = True
        for handle in self._running.values():
            handle.kill()
        self._paths.kept_snapshot.unlink(missing_ok=True)  # nothing of it is true any more
        for ours in (ROLE_TAG, INSTANCE_TAG):  # a shell of the operator may name the folder too
            sweep(STATE_TAG, str(self._paths.state_dir), having=ours)

    # Private

    async def _keep(self, role: str) -> None:
        wait_s = _RETRY_FIRST_S
        while not self._stopping:
            handle = self._spawn(role)
            self._running[role] = handle
            began_s = time.monotonic()
            code, is_sound = await self._attend(role, handle)
            if self._stopping:
                return
            self._deaths[role] += 1
            if is_sound:  # only what cannot even start is held back longer and longer
                wait_s = _RETRY_FIRST_S
            if time.monotonic() - began_s > _STEADY_S:
                self._deaths[role] = 0
            log.warning(f"{role}.died", code=code, restart_in_s=wait_s, log=str(self._log(role)))
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_LAST_S)

    async def _attend(self, role: str, handle: ProcessHandle) -> tuple[int | None, bool]:
        """Wait for the end of a process; return its code, and whether it ever told of itself.

        One that told and then is silent for too long is ended: nothing it holds can be served any
        more, and the socket it listens on outlives it. Only time in which we ran ourselves counts.
        """
        code, is_sound, silent_s = None, False, 0.0
        while handle.alive():
            code = await wait_exit(handle, timeout_s=EVERY_S)
            if handle.pid in self._heard:
                self._heard.discard(handle.pid)
                is_sound, silent_s = True, 0.0
            elif is_sound:
                silent_s += EVERY_S
            if silent_s >= self._config.life.hung_after_s and handle.kill():
                log.error(f"{role}.hangs", pid=handle.pid, silent_s=silent_s)
        return code if code is not None else handle.reap(), is_sound

    def _spawn(self, role: str) -> ProcessHandle:
        argv = [sys.executable, "-m", "hostler", role, f"--config={self._settings}", "--supervised"]
        if role == "gateway":
            argv.append("--inherit")  # the listening socket, as its standard input
        with self._log(role).open("ab") as output:
            return spawn(
                argv,
                env=child_environment({STATE_TAG: str(self._paths.state_dir), ROLE_TAG: role}),
                stdout=output.fileno(),
                stdin=self._sock.fileno() if role == "gateway" else None,
            )

    def _log(self, role: str) -> Path:
        return self._paths.logs_dir / f"{role}.log"


def write_record(paths: StatePaths, url: str) -> None:
    """Say where this state folder is served."""
    record = UpRecord(url=url, pid=os.getpid(), started_at_s=time.time())
    fresh = paths.up_record.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(paths.up_record)
