"""One SQLite file: made, checked, migrated and opened; and what its errors mean to a user.

A new file is made whole under another name and renamed: so an empty or half-made `hostler.db` is
always damage, never a start, and is refused. Alembic is imported only when a migration must run.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from hostler.core.errors import (
    BadRequest,
    HostlerError,
    InsufficientStorage,
    StartupError,
    StorageBusy,
    StorageFailed,
)
from hostler.storage import tables


def open_database(path: Path, busy_timeout_s: float) -> sa.Connection:
    """Return a connection to the file at its newest schema; the file is made when there is none.

    Raises:
        StartupError: damaged, of a newer Hostler, not readable, or gone with its log left behind.
    """
    try:
        if not path.exists():
            _make(path)
        path.chmod(0o600)
        connection = connect(path, busy_timeout_s)
    except OSError as error:
        raise StartupError(
            f"database {path}: cannot be opened ({error.strerror}); "
            "check the folder's permissions or choose another with --state-dir"
        ) from error
    try:
        with translated(path):
            _check(connection, path)
            _migrate(connection, path)
            with connection.begin():  # last: it writes to the file, which may not be ours to touch
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    except StorageFailed as error:
        _close(connection)
        raise StartupError(error.message) from error
    except BaseException:  # boundary: a half-open database must not keep its file
        _close(connection)
        raise
    return connection


def connect(path: Path, busy_timeout_s: float, *, flush: bool = True) -> sa.Connection:
    """Return a connection to a file that is there. flush: whether a commit waits for the disk."""
    engine = _engine(path, busy_timeout_s)
    try:
        with translated(path):
            connection = engine.connect()
            with connection.begin():
                connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if flush else 'NORMAL'}")
            return connection
    except StorageFailed as error:
        engine.dispose()
        raise StartupError(error.message) from error
    except BaseException:  # boundary: a half-open database must not keep its file
        engine.dispose()
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the decoder raise into errors that a user can act on."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _meaning(error.orig, path) from error
    except sqlite3.Error as error:
        raise _meaning(error, path) from error
    except (msgspec.MsgspecError, BadRequest, ValueError) as error:
        raise StorageFailed(_damaged(path, f"a row cannot be read: {error}")) from error


class FileLine:
    """One connection that several threads take in turn."""

    insert = staticmethod(insert)

    def __init__(self, connection: sa.Connection, path: Path) -> None:
        self.connection = connection
        self._path = path
        self._lock = threading.Lock()

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds, as it was at one moment."""
        with self._lock, translated(self._path), self.connection.begin():
            return list(self.connection.execute(query).all())

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that has the write lock from its first statement on."""
        with self._lock, translated(self._path), self.connection.begin():
            self.connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield self.connection

    def decoding(self) -> AbstractContextManager[None]:
        """What cannot be read within is damage to this file."""
        return translated(self._path)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            _close(self.connection)


# Private

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
# The disk is full while the write-ahead log's index must grow: reported as an I/O error.
_FULL_EXTENDED = {sqlite3.SQLITE_IOERR_SHMSIZE}


def _meaning(error: BaseException | None, path: Path) -> HostlerError:
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code in _BUSY:
        return StorageBusy(f"database {path}: locked by another process", retry_after_s=1)
    if code == sqlite3.SQLITE_FULL or extended in _FULL_EXTENDED:
        return InsufficientStorage(f"database {path}: the disk is full; nothing was changed")
    if code in _DAMAGE:
        return StorageFailed(_damaged(path, str(error)))
    return StorageFailed(f"database {path}: {error}", retry_after_s=1)


def _damaged(path: Path, what: str) -> str:
    return (
        f"database {path} is damaged ({what}); it was left as it is. Put a copy of it back, or "
        "move it away to start with nothing: wishes and keys in it are then lost"
    )


def _engine(path: Path, busy_timeout_s: float) -> sa.Engine:
    # isolation_level None: transactions begin where we say so, with the lock we say
    return sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.pool.StaticPool,
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": busy_timeout_s,
        },
    )


def _close(connection: sa.Connection) -> None:
    connection.close()
    connection.engine.dispose()


def _make(path: Path) -> None:
    """Make an empty database of the newest schema, whole or not at all, readable by its owner."""
    for left in (f"{path}-wal", f"{path}-shm"):
        if os.path.exists(left):
            raise StartupError(
                f"database {path} is gone but {left} is there; put the database back, or remove "
                "that file too to start with nothing"
            )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    engine = _engine(part, 5.0)
    try:
        with translated(path), engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            tables.metadata.create_all(connection)
            connection.execute(sa.insert(tables.version).values(version_num=tables.HEAD))
        engine.dispose()
        try:
            os.link(part, path)  # unlike a rename it never replaces what another process has made
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        engine.dispose()
        part.unlink(missing_ok=True)


def _check(connection: sa.Connection, path: Path) -> None:
    with connection.begin():
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise StartupError(_damaged(path, str(found)))


def _migrate(connection: sa.Connection, path: Path) -> None:
    """Bring an older schema to the newest: a copy first, then all steps in one transaction."""
    with connection.begin():
        has_table = sa.inspect(connection).has_table(tables.version.name)
        rows = connection.execute(sa.select(tables.version)).scalars().all() if has_table else []
    if len(rows) != 1:
        raise StartupError(_damaged(path, "it does not say which schema it has"))
    (current,) = rows
    if current == tables.HEAD:
        return
    if current not in tables.HISTORY:
        raise StartupError(
            f"database {path} has schema {current}, written by a newer Hostler; this one knows "
            f"{tables.HISTORY[0]} to {tables.HEAD}. Install that version or newer again"
        )
    from hostler.storage.migrations.run import upgrade  # imports Alembic: only when it is needed

    copy = path.with_name(f"{path.name}.schema-{current}")
    copy.unlink(missing_ok=True)
    with connection.begin():
        connection.exec_driver_sql("VACUUM INTO ?", (str(copy),))
    copy.chmod(0o600)
    with connection.begin():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        upgrade(connection)
