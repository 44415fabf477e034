"""ProcessEngine: an engine that is a program: started, watched, checked to be the right one, ended whole.

Between the worker and the program stands `warden.py`, inside a PID namespace where this machine allows one
(`isolation`). Whatever ends the worker, SIGKILL included, ends the engine and everything it started.
"""

import asyncio
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import msgspec

from hostler.app.config import engine_environment
from hostler.app.memory import OomWatch
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, spawn, sweep, wait_exit
from hostler.app.telemetry import logger
from hostler.core.errors import EngineError, HostlerError, IdentityMismatch
from hostler.core.fleet import WorkerSpec
from hostler.core.snapshot import Endpoint
from hostler.engines import warden
from hostler.engines.base import OOM_TEXT, Started
from hostler.engines.command import Command, check_argv, metric
from hostler.engines.output import EngineOutput
from hostler.wire.client import UpstreamLost, fetch

log = logger(__name__)

INSTANCE_TAG = "HOSTLER_INSTANCE"
STATE_TAG = "HOSTLER_STATE_DIR"

_KILL_GRACE_S = 3.0  # from SIGTERM to SIGKILL; with the drain it stays below the agent's own limit
_KILL_WAIT_S = 1.0
_POLL_FIRST_S, _POLL_LAST_S = 0.02, 0.25  # a program has no event for `I serve now`
_CALL_TIMEOUT_S = 2.0
_DRAIN_POLL_S = 0.1
_START_MARGIN_S = 1.0  # our deadline comes before the agent's: ours knows the last log lines
_TOLD_LINES, _TOLD_CHARS = 20, 2000
_TRY_TIMEOUT_MS = 5000


_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Isolation(StrEnum):
    """What makes sure that an engine's processes end with their worker."""

    PID_NAMESPACE = "pid-namespace"  # the kernel ends all of them
    PROCESS_TREE = "process-tree"  # the warden adopts and ends them; sweeps find what is left


class ProcessEngine:
    """An `engines.base.Engine` around a program. A subclass of no arguments names its command."""

    def __init__(
        self,
        command: Callable[[WorkerSpec], Command],
        *,
        kill_grace_s: float = _KILL_GRACE_S,
        isolation_mode: Isolation | None = None,
    ) -> None:
        """command: what to run for a specification. isolation_mode: None takes the best there is."""
        self._make_command = command
        self._kill_grace_s = kill_grace_s
        self._isolation = isolation_mode
        self._command: Command | None = None
        self._spec: WorkerSpec | None = None
        self._endpoint = Endpoint()
        self._output = EngineOutput(None)
        self._handle: ProcessHandle | None = None
        self._control: socket.socket | None = None
        self._busy: int | None = None
        self._memory: OomWatch | None = None

    @property
    def isolation(self) -> Isolation:
        return self._isolation or best_isolation()

    async def start(self, spec: WorkerSpec) -> Started:
        """Run the program and wait until it lists the right model. From the main thread only.

        Raises:
            EngineError: it ended, or did not serve in time; the message ends in its last log lines.
            IdentityMismatch: it serves other models.
        """
        command = self._make_command(spec)
        argv = check_argv(command.argv)
        self._command, self._spec = command, spec
        self._endpoint = Endpoint(socket=spec.engine_socket)
        Path(spec.engine_socket).unlink(missing_ok=True)
        handle = self._launch(spec, command, argv)
        log.info("engine.launched", isolation=self.isolation.value, pid=handle.pid)
        try:
            await self._wait_ready(spec, command, handle)
        except BaseException:  # boundary: whatever stopped the start, nothing of it may go on
            await asyncio.shield(self._end_tree())
            raise
        return Started(
            metadata=command.metadata,
            endpoint=self._endpoint,
            upstream_model=command.upstream_model,
            pid=self._engine_pid(handle),
        )

    async def probe(self) -> bool:
        """Ask its health path; also look how busy it is, if it says so."""
        if self._command is None:
            return False
        if self._memory is not None:
            self._memory.look()
        if (await self._ask(self._command.health_path)) is None:
            return False
        await self._look_busy()
        return True

    def in_flight(self) -> int | None:
        return self._busy

    async def stop(self, drain_s: float) -> None:
        """Wait for running requests, SIGTERM, wait a little, SIGKILL the whole tree."""
        handle = self._handle
        if handle is None:
            return
        try:
            await self._drain(handle, drain_s)
            self._order(b"T")
            await wait_exit(handle, timeout_s=self._kill_grace_s)
        finally:
            await asyncio.shield(self._end_tree())

    async def exited(self) -> str:
        """Wait until the program has ended; return how, with its last log lines."""
        if self._handle is None:
            return "it was not started"
        code = await wait_exit(self._handle)
        if code in _KILLED and self._memory is not None and self._memory.struck():
            return f"{OOM_TEXT}{self._last_words()}"
        return f"{exit_text(code)}{self._last_words()}"

    def last_lines(self, count: int = 50) -> list[str]:
        """What it printed last."""
        return self._output.last_lines(count)

    # Private

    def _engine_pid(self, handle: ProcessHandle) -> int:
        pid = _innermost(handle.pid)
        self._memory = OomWatch(pid)
        return pid

    def _launch(self, spec: WorkerSpec, command: Command, argv: list[str]) -> ProcessHandle:
        logs = StatePaths(spec.state_dir).logs_dir if spec.state_dir else None
        path = logs / f"engine-{spec.instance_id}.log" if logs and logs.is_dir() else None
        tags = {INSTANCE_TAG: spec.instance_id}
        if spec.state_dir:
            tags[STATE_TAG] = spec.state_dir
        self._output = EngineOutput(path)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        stdout = self._output.open()
        try:
            self._handle = spawn(
                [*_wrapper(self.isolation), *argv],
                env=engine_environment({**command.env, **tags}),
                stdout=stdout,
                stdin=theirs.fileno(),
            )
        except HostlerError:
            self._control.close()
            self._output.close()
            raise
        finally:
            os.close(stdout)
            theirs.close()
        return self._handle

    async def _wait_ready(self, spec: WorkerSpec, command: Command, handle: ProcessHandle) -> None:
        limit_s = max(spec.start_timeout_s - _START_MARGIN_S, spec.start_timeout_s * 0.9)
        pause_s = _POLL_FIRST_S
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    if not handle.alive():
                        raise EngineError(
                            f"engine ended while starting: {exit_text(handle.reap())}{self._last_words()}"
                        )
                    if await self._ask(command.health_path) is not None and await self._is_listed():
                        return
                    await wait_exit(handle, timeout_s=pause_s)
                    pause_s = min(pause_s * 1.5, _POLL_LAST_S)
        except TimeoutError as error:
            raise EngineError(
                f"engine did not serve within {limit_s:g} s{self._last_words()}"
            ) from error

    async def _is_listed(self) -> bool:
        """Whether `/v1/models` lists the right model. False: no list yet.

        Raises:
            IdentityMismatch: it lists others.
        """
        assert self._command is not None
        body = await self._ask("/v1/models")
        if body is None:
            return False
        try:
            listed = [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except msgspec.DecodeError as error:
            raise IdentityMismatch("the engine's /v1/models is no list of models") from error
        if self._command.upstream_model not in listed:
            raise IdentityMismatch(
                f"the engine serves {', '.join(map(repr, listed[:5])) or 'no model'}, "
                f"not {self._command.upstream_model!r}"
            )
        return bool(listed)

    async def _ask(self, path: str) -> bytes | None:
        """GET; None unless the answer is 200."""
        with suppress(UpstreamLost, TimeoutError, HostlerError):
            answer = await fetch(self._endpoint, "GET", path, timeout_s=_CALL_TIMEOUT_S)
            return answer.body if answer.status == 200 else None
        return None

    async def _look_busy(self) -> None:
        assert self._command is not None
        if self._command.busy_path:
            body = await self._ask(self._command.busy_path)
            text = body.decode("utf-8", "replace") if body is not None else ""
            self._busy = metric(text, self._command.busy_metric)

    async def _drain(self, handle: ProcessHandle, drain_s: float) -> None:
        ends_at_s = time.monotonic() + drain_s
        while handle.alive() and (left_s := ends_at_s - time.monotonic()) > 0:
            await self._look_busy()
            if self._busy == 0:
                return
            await wait_exit(handle, timeout_s=min(_DRAIN_POLL_S, left_s))

    def _order(self, order: bytes) -> None:
        if self._control is not None:
            with suppress(OSError):
                self._control.send(order)

    async def _end_tree(self) -> None:
        """SIGKILL whatever is left, and see it gone. Safe to call twice."""
        handle, control, spec = self._handle, self._control, self._spec
        self._handle = self._control = None
        if control is not None:
            control.close()  # the warden ends everything below it
        if handle is None or spec is None:
            return
        await wait_exit(handle, timeout_s=_KILL_WAIT_S)
        if handle.alive():
            handle.kill()
            await wait_exit(handle, timeout_s=_KILL_WAIT_S)
        ours = (STATE_TAG, spec.state_dir) if spec.state_dir else None
        swept = sweep(INSTANCE_TAG, spec.instance_id, within=ours)
        if swept:
            log.warning("engine.swept", count=len(swept), isolation=self.isolation.value)
        self._output.close()
        Path(spec.engine_socket).unlink(missing_ok=True)

    def _last_words(self) -> str:
        lines = "\n".join(self._output.last_lines(_TOLD_LINES))[-_TOLD_CHARS:]
        return f"; its last lines:\n{lines}" if lines else "; it printed nothing"


@lru_cache(maxsize=1)
def best_isolation() -> Isolation:
    """Try once what this machine allows this user. A few milliseconds; from the main thread."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        handle = spawn([*_namespace(), "true"], env=engine_environment(), stdout=null)
    except HostlerError:
        return Isolation.PROCESS_TREE
    finally:
        os.close(null)
    poller = select.poll()
    poller.register(handle.fileno(), select.POLLIN)
    if not poller.poll(_TRY_TIMEOUT_MS):
        handle.kill()
        poller.poll(_TRY_TIMEOUT_MS)
    return Isolation.PID_NAMESPACE if handle.reap() == 0 else Isolation.PROCESS_TREE


def exit_text(code: int | None) -> str:
    """Say how a program ended. code: as the warden tells it, 128 + n for signal n."""
    if code is None:
        return "it is gone"
    number = -code if code < 0 else code - 128
    return f"killed by signal {number}" if 0 < number < 65 else f"exit code {code}"


# Private


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _namespace() -> list[str]:
    """A PID namespace with a /proc of its own: without one, programs there would read of strangers."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    return ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def _wrapper(isolation: Isolation) -> list[str]:
    outside = _namespace() if isolation is Isolation.PID_NAMESPACE else []
    return [*outside, sys.executable, "-I", "-S", str(warden.__file__), "--"]


def _innermost(pid: int) -> int:
    """The program itself, below unshare and the warden; for reading its memory, not for signals."""
    for _ in range(3):
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return pid
        if not text.strip() or (b"warden.py" not in name and not name.startswith(b"unshare")):
            return pid
        pid = int(text.split()[0])
    return pid
