"""Supervisor: keeps the controller and the gateways of one state folder running.

It owns the lock and the listening sockets, so a gateway that dies loses no connection that waits.
It knows nothing of models.
"""

import asyncio
import fcntl
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from hostler.app.config import Config, child_environment
from hostler.app.environment import own_python
from hostler.app.loading import Loaded, write_settings
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, spawn, sweep, tagged, wait_exit
from hostler.app.pulse import hearing
from hostler.app.supervision import OWNER_VARIABLE, GatewayProcess, Gateways, Wish, answering
from hostler.app.telemetry import logger
from hostler.cli.keeper import END_S, Keeper, Pulses
from hostler.cli.target import UpRecord
from hostler.core.errors import Conflict, HostlerError, StartupError
from hostler.gateway.board import Bells, Board
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG

log = logger(__name__)


_DRAINED = frozenset({"gateway", "relay"})


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

    The controller is killed (it is crash-only, and the next one adopts its workers); gateways and relay
    are asked to finish their streams, and stop listening at once.
    """
    state = str(paths.state_dir)
    ours = tagged(STATE_TAG, state)
    for pid, role in tagged(ROLE_TAG).items():
        if role in _DRAINED and pid in ours and (handle := ProcessHandle.of(pid)) is not None:
            handle.terminate()
            log.info("takeover", role=role, pid=pid)
    for pid in sweep(STATE_TAG, state, having=ROLE_TAG, but_not=_DRAINED | {"worker"}):
        log.info("takeover", role="controller", pid=pid)


class Supervisor:
    """The processes of one state folder: a controller, and one gateway a listening socket.

    control: the listening socket of the control port, which the controller serves; None: there is none.
    relay: of the relay before the models here, a process of its own; None: it is not needed.
    reload: reads the settings anew, for gateways that are started from then on.
    """

    def __init__(
        self,
        paths: StatePaths,
        loaded: Loaded,
        socks: Sequence[socket.socket],
        reload: Callable[[], Loaded],
        control: socket.socket | None = None,
        relay: socket.socket | None = None,
    ) -> None:
        self._paths = paths
        self._control = control
        self._relay = relay
        self._loaded = loaded
        self._reload = reload
        self._settings = paths.run_dir / "settings.json"
        self._pulses = Pulses()
        self._owner = secrets.token_hex(
            8
        )  # each controller of ours may go on where the last one led
        self._stopping = False
        self._group: asyncio.TaskGroup | None = None
        self._board: Board | None = None
        self._bells = Bells(paths.run_dir)
        self._columns: dict[int, int] = {}  # by pid
        self._renewing = asyncio.Lock()
        self._controller = self._keeper("controller", self._launch_controller)
        self._relays = [] if relay is None else [self._keeper("relay", self._launch_relay)]
        self._gateways = [
            self._keeper(
                "gateway" if number == 1 else f"gateway-{number}",
                partial(self._launch_gateway, number, sock),
            )
            for number, sock in enumerate(socks, 1)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep all of them up while the block lasts. The block ends them with `stop`."""
        write_settings(self._loaded, self._settings)
        async with (
            self._slots(),
            hearing(self._paths.pulse_socket, self._pulses.note),
            answering(self._paths.up_socket, self._answer),
            asyncio.TaskGroup() as tasks,
        ):
            self._group = tasks
            keepers = [
                tasks.create_task(keeper.run(), name=f"keep {keeper.name}")
                for keeper in self._keepers
            ]
            try:
                yield
            finally:
                self._stopping = True
                self._group = None
                for keeper in keepers:
                    keeper.cancel()
                self.kill()
                self._paths.leave(is_last=True)

    def failing(self, role: str) -> str | None:
        """Return the last words of a process that dies each time it is started; None while all live."""
        keepers = [self._controller] if role == "controller" else self._gateways
        return next((why for one in keepers if (why := one.failing()) is not None), None)

    async def renew_gateways(self) -> tuple[str, ...]:
        """Put a fresh process in the place of each gateway, one after the other, with the settings as
        they are now. No connection is lost: the old ones finish what they have.

        Return what has changed in the settings and needs more than that.

        Raises:
            ConfigError: the settings cannot be used; nothing is done. Conflict, StartupError: a
                gateway could not be renewed; those before it are, the others go on as they are.
        """
        if self._renewing.locked():
            raise Conflict("the gateways are being renewed already")
        async with self._renewing:
            if self._group is None:
                raise Conflict("this server is stopping")
            before = self._loaded
            self._loaded, notes = _renewed(before, self._reload())
            write_settings(self._loaded, self._settings)
            try:
                for keeper in self._gateways:
                    await keeper.renew(self._group)
            except BaseException:  # boundary: whatever it was, a crash later must not use them
                self._loaded = before
                write_settings(before, self._settings)
                raise
            return notes

    def begin_renewal(self) -> None:
        """The same, for a signal: what goes wrong is in the log."""
        if self._group is not None:
            self._group.create_task(self._renew_and_log(), name="renew gateways")

    async def stop(self) -> None:
        """Let requests finish, then stop the workers, then the rest. Each step has a deadline."""
        self._stopping = True
        life = self._config.life
        ends_s = time.monotonic() + life.drain_timeout_s + END_S
        doors = [*self._gateways, *self._relays]
        for handle in [one for keeper in doors for one in keeper.terminate()]:
            await wait_exit(handle, timeout_s=max(0.0, ends_s - time.monotonic()))
        for handle in self._controller.terminate():
            await wait_exit(handle, timeout_s=life.drain_timeout_s + life.kill_grace_s + END_S)

    def kill(self) -> None:
        """End everything of this state folder at once, workers and engines included."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.kill()
        self._paths.kept_snapshot.unlink(missing_ok=True)  # nothing of it is true any more
        for ours in (ROLE_TAG, INSTANCE_TAG):  # a shell of the operator may name the folder too
            sweep(STATE_TAG, str(self._paths.state_dir), having=ours)

    # Private

    @property
    def _config(self) -> Config:
        return self._loaded.config

    @property
    def _keepers(self) -> list[Keeper]:
        return [self._controller, *self._gateways, *self._relays]

    def _keeper(self, name: str, launch: Callable[[bool], ProcessHandle]) -> Keeper:
        return Keeper(name, self._log(name), self._config.life, self._pulses, launch, self._gone)

    @asynccontextmanager
    async def _slots(self) -> AsyncIterator[None]:
        """The board on which gateways count: ours, since we see each of them begin and end."""
        with closing(Board(self._paths.board, is_new=True)) as self._board:
            try:
                yield
            finally:
                self._board = None
                self._paths.board.unlink(missing_ok=True)
                self._bells.close()

    def _gone(self, handle: ProcessHandle) -> None:
        """A process has ended: what it counted is no more."""
        column = self._columns.pop(handle.pid, None)
        if column is not None and self._board is not None:
            self._board.take_back(column)
            self._tell_gateways()

    def _tell_gateways(self) -> None:
        for column in self._columns.values():
            self._bells.ring(column)

    async def _answer(self, wish: Wish) -> Gateways:
        notes = await self.renew_gateways() if wish is Wish.RENEW else ()
        found = []
        for number, keeper in enumerate(self._gateways, 1):
            serving = keeper.handle
            states = [(serving, keeper.since_s, "serving")] if serving is not None else []
            states += [(one, since_s, "leaving") for one, since_s in keeper.leaving.items()]
            found += [
                GatewayProcess(
                    number=number,
                    pid=handle.pid,
                    state=state,
                    started_at_s=since_s,
                    socket=str(self._paths.gateway_socket_of(number)) if state == "serving" else "",
                )
                for handle, since_s, state in states
            ]
        return Gateways(gateways=tuple(found), notes=notes)

    async def _renew_and_log(self) -> None:
        try:
            for note in await self.renew_gateways():
                log.warning("settings.not_taken", why=note)
        except HostlerError as error:
            log.error("gateways.not_renewed", why=error.message)

    def _launch_controller(self, is_successor: bool) -> ProcessHandle:
        told = ["--inherit"] if self._control is not None else []
        if self._relay is not None:
            told.append(f"--relay-port={self._relay.getsockname()[1]}")
        return self._spawn("controller", told, self._control, "controller")

    def _launch_relay(self, is_successor: bool) -> ProcessHandle:
        return self._spawn("relay", ["--inherit"], self._relay, "relay")

    def _launch_gateway(
        self, number: int, sock: socket.socket, is_successor: bool
    ) -> ProcessHandle:
        told = ["run", "--inherit", f"--number={number}"]  # the socket, as its standard input
        if is_successor:
            told.append("--successor")
        board = self._board
        assert board is not None
        column = board.lend()
        told.append(f"--column={column}")
        name = self._gateways[number - 1].name
        try:
            handle = self._spawn("gateway", told, sock, name)
        except StartupError:
            board.take_back(column)
            raise
        self._tell_gateways()
        self._columns[handle.pid] = column
        return handle

    def _spawn(
        self, role: str, told: list[str], sock: socket.socket | None, name: str
    ) -> ProcessHandle:
        argv = own_python("-m", "hostler", role, *told)
        argv += [f"--config={self._settings}", "--supervised"]
        with self._log(name).open("ab") as output:
            return spawn(
                argv,
                env=child_environment(
                    {
                        STATE_TAG: str(self._paths.state_dir),
                        ROLE_TAG: role,
                        OWNER_VARIABLE: self._owner,
                    }
                ),
                stdout=output.fileno(),
                stdin=sock.fileno() if sock is not None else None,
            )

    def _log(self, name: str) -> Path:
        return self._paths.logs_dir / f"{name}.log"


# What a new gateway takes; of `server` all but what is bound already.
_TAKEN = ("gateway", "limits", "server")
_BOUND = {"server": ("host", "port", "allow_remote"), "gateway": ("processes",)}


def renewed(old: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the settings for new gateways, and a sentence for each change that they cannot take."""
    notes: list[str] = []
    sections = {}
    for name in _TAKEN:
        before, after = getattr(old, name), getattr(new, name)
        kept = {field: getattr(before, field) for field in _BOUND.get(name, ())}
        for field, value in kept.items():
            if getattr(after, field) != value:
                notes.append(f"{name}.{field}: takes effect when `hostler up` is started anew")
        sections[name] = msgspec.structs.replace(after, **kept)
    for name in old.__struct_fields__:
        if name not in _TAKEN and getattr(old, name) != getattr(new, name):
            notes.append(f"{name}: takes effect when `hostler up` is started anew")
    return msgspec.structs.replace(old, **sections), tuple(notes)


def _renewed(old: Loaded, new: Loaded) -> tuple[Loaded, tuple[str, ...]]:
    """The same, with where each value that is in use came from."""
    config, notes = renewed(old.config, new.config)

    def is_taken(name: str) -> bool:
        section, _, field = name.partition(".")
        return section in _TAKEN and field not in _BOUND.get(section, ())

    of = {name: origin for name, origin in old.origins.of.items() if not is_taken(name)}
    of |= {name: origin for name, origin in new.origins.of.items() if is_taken(name)}
    origins = msgspec.structs.replace(new.origins, of=of, not_taken=notes)
    return Loaded(config=config, origins=origins), notes


def write_record(paths: StatePaths, url: str, *, control_url: str = "", ca: str = "") -> None:
    """Say where this state folder is served."""
    record = UpRecord(
        url=url, pid=os.getpid(), started_at_s=time.time(), control_url=control_url, ca=ca
    )
    fresh = paths.up_record.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(paths.up_record)
