"""StatePaths: where everything of one state folder lives, and who may read it."""

import errno
import hashlib
import os
import shutil
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from hostler.core.errors import StartupError

# A Unix socket's path may have 107 bytes; a socket's name here has up to 32.
_LONGEST_RUN_DIR = 70
_STALE_S = 3600.0  # a folder outside in which nothing was made for so long may be nobody's


class StatePaths:
    """The files of one state folder. Making one touches nothing; `create` makes the folders.

    run_dir holds the sockets and worker specs. It lies in the state folder unless that path is too
    long for a Unix socket; then in the system's temporary folder, under a name made from the path.
    """

    def __init__(self, state_dir: str | Path) -> None:
        self.state_dir = Path(state_dir).expanduser().absolute()
        self.models_dir = self.state_dir / "models"
        self.logs_dir = self.state_dir / "logs"
        self.database = self.state_dir / "hostler.db"
        self.admin_key = self.state_dir / "admin.key"
        self.tls_dir = self.state_dir / "tls"
        self.lock = self.state_dir / "up.lock"
        self.tls_dir = self.state_dir / "tls"
        self.up_record = self.state_dir / "up.json"
        self.run_dir = self._run_dir()
        self.registry_socket = self.run_dir / "registry.sock"
        self.admin_socket = self.run_dir / "admin.sock"
        self.gateway_socket = self.run_dir / "gateway.sock"
        self.board = self.run_dir / "slots.board"
        self.up_socket = self.run_dir / "up.sock"
        self.pulse_socket = self.run_dir / "pulse.sock"
        self.host_membership = self.state_dir / "host.json"
        self.host_orders = self.state_dir / "orders.json"
        self.host_socket = self.run_dir / "host.sock"
        self.kept_snapshot = self.run_dir / "snapshot.kept"
        self.standby_record = self.run_dir / "standby.json"

    def create(self) -> None:
        """Make the folders, readable by their owner alone.

        Raises:
            StartupError: a folder cannot be made or written, or belongs to somebody else.
        """
        for folder in (self.state_dir, self.models_dir, self.logs_dir, self.run_dir):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StartupError(
                    f"state folder {folder}: cannot be made ({error.strerror}); "
                    "choose another with --state-dir"
                ) from error
        self._check_owned(self.run_dir)
        if self._is_outside:
            _sweep(self.run_dir)
        if not os.access(self.state_dir, os.W_OK | os.X_OK):
            raise StartupError(
                f"state folder {self.state_dir}: not writable by this user; "
                "change its permissions or choose another with --state-dir"
            )

    def claim(self) -> None:
        """As `create`, for a worker manager: one at a time serves a state folder.

        Raises:
            StartupError: another does now; or as `create`.
        """
        self.create()
        if _listens(self.registry_socket):
            raise StartupError(
                f"state folder {self.state_dir}: another controller or worker manager serves it now "
                "(`hostler up` runs one); stop that, or choose another folder (--state-dir, "
                "Config.state_dir)"
            )

    def claim_gateway(self, number: int) -> None:
        """As `create`, for a gateway that nobody supervises.

        Raises:
            StartupError: another one of this number serves now; or as `create`.
        """
        self.create()
        if _listens(self.gateway_socket_of(number)):
            raise StartupError(
                f"state folder {self.state_dir}: gateway {number} serves already (`hostler gateway list` "
                "shows it); one beside it needs a --number, and in its --config a [server] port, of its own"
            )

    def leave(self, *, is_last: bool = False) -> None:
        """Remove the run folder where it lies outside the state folder and nothing is in it any more.

        is_last: whoever asks knows that no process of this state folder lives: files in it are stale.
        """
        if not self._is_outside:
            return
        if is_last:
            shutil.rmtree(self.run_dir, ignore_errors=True)
        else:
            with suppress(OSError):  # not empty: somebody lives there
                self.run_dir.rmdir()

    def gateway_socket_of(self, number: int) -> Path:
        """The own socket of one gateway of several; they are numbered from 1."""
        return self.gateway_socket if number == 1 else self.run_dir / f"gateway-{number}.sock"

    def other_gateway_sockets(self, number: int) -> list[Path]:
        """The own sockets of all gateways but one that are there now."""
        ours = self.gateway_socket_of(number)
        return [path for path in sorted(self.run_dir.glob("gateway*.sock")) if path != ours]

    def engine_socket(self, instance_id: str) -> Path:
        return self.run_dir / f"{instance_id}.sock"

    def agent_socket(self, instance_id: str) -> Path:
        return self.run_dir / f"{instance_id}.agent"

    def slots_dir(self, instance_id: str) -> Path:
        """Where llama.cpp saves slots for the moment in which they are lent."""
        return self.run_dir / f"{instance_id}.slots"

    def worker_spec(self, instance_id: str) -> Path:
        return self.run_dir / f"{instance_id}.json"

    def worker_log(self, instance_id: str) -> Path:
        return self.logs_dir / f"worker-{instance_id}.log"

    def engine_log(self, instance_id: str) -> Path:
        """Of an engine that is a program; others print to their worker's."""
        return self.logs_dir / f"engine-{instance_id}.log"

    # Private

    @property
    def _is_outside(self) -> bool:
        return self.run_dir.parent != self.state_dir

    def _run_dir(self) -> Path:
        inside = self.state_dir / "run"
        if len(os.fsencode(inside)) <= _LONGEST_RUN_DIR:
            return inside
        digest = hashlib.sha256(os.fsencode(self.state_dir)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"{outside_name()}{digest}"

    @staticmethod
    def _check_owned(folder: Path) -> None:
        """Refuse a folder that somebody else made or can enter (it may lie in a shared /tmp)."""
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            raise StartupError(f"run folder {folder}: not a folder of this user; remove it")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            folder.chmod(0o700)


def outside_name() -> str:
    """How the names of run folders outside begin."""
    return f"hostler-{os.getuid()}-"


# Private


def _sweep(ours: Path) -> None:
    """Remove run folders like ours that a server left which was killed: old ones where nobody listens."""
    for folder in ours.parent.glob(f"{outside_name()}*"):
        with suppress(OSError):
            facts = folder.lstat()
            is_ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            is_old = facts.st_mtime < time.time() - _STALE_S
            if folder != ours and is_ours and is_old and not any(map(_listens, folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    """Is this the socket of a process that lives, of whatever kind, answering or not?"""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
