"""PostgresStore: the store in a PostgreSQL database that several controllers share.

The tables and their migrations are SQLite's. Who writes proves in the same transaction that it still leads
(`Fence`): the server decides that, whatever the writer believes. A connection that breaks is made anew
by the next use. Not here: who leads (lease.py).
"""

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from hostler.core.errors import (
    BadRequest,
    ConfigError,
    HostlerError,
    InsufficientStorage,
    Standby,
    StartupError,
    StorageBusy,
    StorageFailed,
)
from hostler.storage import tables
from hostler.storage.hanging import HangWatch, Wire
from hostler.storage.sql import SqlTables

TURN_S = 2.0  # for a line that another thread uses


def check_url(url: str) -> None:
    """Return when this URL can be used here.

    Raises:
        ConfigError: it is none, or the extra is not installed.
    """
    try:
        sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(  # from None: the text of the library shows the URL, with its password
            "store.url: not a URL like postgresql+psycopg://USER:PASSWORD@HOST/DATABASE; a special "
            "character in the password is written as %XX"
        ) from None
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            "store.url: PostgreSQL needs the extra `postgres`: pip install 'hostler[postgres]' "
            "(from a clone: .venv/bin/pip install --require-hashes -r requirements/postgres.txt)"
        )


def shown(url: str) -> str:
    """The URL without its password, for messages."""
    parts = sa.make_url(url)
    where = parts.host or parts.query.get("host", "")
    where = where if isinstance(where, str) else ",".join(where)
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{where}{port}/{parts.database or ''}"


class Fence:
    """Which leadership writes here. None: nobody asks, as when a single program uses the store."""

    def __init__(self) -> None:
        self.number: int | None = None

    def check(self, connection: sa.Connection) -> None:
        """Return when this leadership is the one that counts, and hold it so until the transaction ends.

        FOR KEY SHARE lets the lease be renewed meanwhile, and makes who takes it over wait for us.

        Raises:
            Standby: another one leads. Nothing may be written.
        """
        if self.number is None:
            return
        table = tables.leaderships
        ours = sa.select(table.c.number).where(
            table.c.number == self.number, table.c.ended_at_s.is_(None)
        )
        held = ours.with_for_update(read=True, key_share=True)
        if connection.execute(held).first() is None:
            raise Standby("this controller does not lead any more; nothing was changed")


class ServerLine:
    """One connection to the server, made when it is needed and again when it broke."""

    insert = staticmethod(cast(Any, postgresql.insert))

    def __init__(self, url: str, fence: Fence | None = None, *, flush: bool = True) -> None:
        """fence: asked in each write. flush: whether a commit waits for the server's disk."""
        self._where = shown(url)
        self._fence = fence or Fence()
        self._lock = threading.Lock()
        self._engine = _engine(url, flush)
        self.wire = Wire(self._engine)

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds, as it was at one moment."""
        try:
            return self._rows(query)
        except StorageBusy:  # a connection that broke while nobody used it says so once
            return self._rows(query)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction of who leads."""
        with (
            self._turn(),
            self.decoding(),
            self._translated(),
            self._engine.begin() as connection,
        ):
            self._fence.check(connection)
            yield connection

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """What cannot be read within is damage to this database."""
        try:
            yield
        except (msgspec.MsgspecError, BadRequest, ValueError) as error:
            raise StorageFailed(
                f"database {self._where}: a row cannot be read ({error}); put a copy of it back"
            ) from error

    def close(self) -> None:
        """Let go of the connection, also while it is used."""
        self._engine.dispose()
        self.wire.close()

    # Private

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        with self._turn(), self._translated(), self._engine.begin() as connection:
            return list(connection.execute(query).all())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=TURN_S):
            raise StorageBusy(f"database {self._where}: does not answer", retry_after_s=1)
        self.wire.begin()
        try:
            yield
        finally:
            self.wire.end()
            self._lock.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what the driver raises into errors that a user can act on. The next use connects anew:
        the address may stand for another server by then.
        """
        try:
            yield
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            self._engine.dispose()
            raise meaning(error, self._where) from error


class PostgresStore(SqlTables):
    """What a controller keeps, in a PostgreSQL database.

    Raises:
        StartupError: of a newer Hostler; or the server refuses us.
        StorageBusy: it cannot be reached now.
    """

    _state: ServerLine
    _log: ServerLine
    _reads: ServerLine

    def __init__(self, url: str) -> None:
        """Make the tables where there are none. Older ones stay until `migrate`."""
        check_url(url)
        self.fence = Fence()
        self._where = shown(url)
        self._state = ServerLine(url, self.fence)
        self._log = ServerLine(url, self.fence, flush=False)
        self._reads = ServerLine(url)
        self.lease_line = ServerLine(url)  # of its own: renewing waits for nobody
        self._hangs = HangWatch([line.wire for line in self._lines])
        try:
            self._schema = self._prepare()
        except StorageFailed as error:
            self.close()
            raise StartupError(error.message) from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def alone(cls, url: str) -> "PostgresStore":
        """As one program uses it that shares it with nobody: at the newest schema, without a lease."""
        store = cls(url)
        store.migrate()
        return store

    def migrate(self) -> None:
        """Bring an older schema to the newest, in one transaction. For who leads.

        Raises:
            StartupError: a row cannot be read.
        """
        if self._schema != tables.HEAD:
            from hostler.storage.migrations.run import upgrade  # imports Alembic: when it is needed

            with self._state.writing() as connection:
                _lock_schema(connection)
                upgrade(connection)
            self._schema = tables.HEAD
        self.check()

    def next_incarnation(self) -> int:
        return self.fence.number if self.fence.number is not None else super().next_incarnation()

    def close(self) -> None:
        self._hangs.stop()
        for line in self._lines:
            line.close()

    # Private

    @property
    def _lines(self) -> tuple[ServerLine, ...]:
        return self._state, self._log, self._reads, self.lease_line

    def _prepare(self) -> str:
        """Return the schema's version. Two that start at once make it once."""
        with self.lease_line.writing() as connection:
            _lock_schema(connection)
            if not sa.inspect(connection).has_table(tables.version.name):
                tables.metadata.create_all(connection)
                connection.execute(sa.insert(tables.version).values(version_num=tables.HEAD))
            found = connection.execute(sa.select(tables.version)).scalars().all()
        if len(found) != 1 or found[0] not in tables.HISTORY:
            raise StartupError(
                f"database {self._where} has schema {', '.join(map(str, found)) or 'none'}, written by a "
                f"newer Hostler or by something else; this one knows {tables.HISTORY[0]} to "
                f"{tables.HEAD}. Install that version or newer, or name an empty database"
            )
        return str(found[0])


def meaning(error: sa.exc.SQLAlchemyError, where: str) -> HostlerError:
    """Return what an error of the driver means to a user."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    state = getattr(cause, "sqlstate", None) or ""
    text = " ".join(str(cause).split())[:300]
    if state == "53100":
        return InsufficientStorage(f"database {where}: its disk is full; nothing was changed")
    if state == "25006":
        return StorageFailed(
            f"database {where}: it takes no writes, as a standby of PostgreSQL; store.url must lead "
            "to the primary (several hosts with target_session_attrs=read-write find it)",
            retry_after_s=1,
        )
    if state in _PASSING or state[:2] in ("08", "40"):
        return StorageBusy(f"database {where}: {_PASSING.get(state, text)}", retry_after_s=1)
    if not state:  # no server said it, or one before it let us in
        if "FATAL" in text and any(sign in text for sign in _FOR_GOOD):
            return StorageFailed(f"database {where}: it refuses us ({text})", retry_after_s=1)
        return StorageBusy(f"database {where}: cannot be reached ({text})", retry_after_s=1)
    return StorageFailed(f"database {where}: {text} ({state})", retry_after_s=1)


# Private

_SCHEMA_LOCK = 0x686F73746C6572  # "hostler": of who makes or migrates the tables

# By SQLSTATE: what passes by itself, and what to call it.
_PASSING = {
    "53300": "it has no connection left for us",
    "55P03": "a row is locked by another process",
    "57014": "it took too long to answer",
    "57P01": "it is shutting down",
    "57P02": "it is shutting down",
    "57P03": "it is starting",
    "25P03": "it ended a transaction that stood still",
}
# libpq tells no code of a connection that was refused. What is not among these may pass: a server that
# starts, stops, recovers or is full says so in many ways.
_FOR_GOOD = (
    "does not exist",
    "authentication failed",
    "pg_hba.conf",
    "no password",
    "permission denied",
)


def _lock_schema(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))


def _engine(url: str, flush: bool) -> sa.Engine:
    """One connection, in which nothing waits for long: a server that is out of reach is found out
    within three seconds, and a transaction of ours that stands still (as when this process is stopped
    in the middle) is ended by the server, so that its locks hold nobody up.
    """
    parts = sa.make_url(url).set(drivername="postgresql+psycopg")
    limits = {
        "statement_timeout": "3000",
        "lock_timeout": "2000",
        "idle_in_transaction_session_timeout": "1000",
        "synchronous_commit": "on" if flush else "off",
    }
    given = str(parts.query.get("options", ""))
    options = " ".join([given, *(f"-c {name}={value}" for name, value in limits.items())])
    usual: dict[str, Any] = {
        "connect_timeout": 2,
        "keepalives_idle": 1,
        "keepalives_interval": 1,
        "keepalives_count": 2,
        "tcp_user_timeout": 2500,
        "application_name": "hostler",
        "prepare_threshold": None,
    }
    arguments = {name: value for name, value in usual.items() if name not in parts.query}
    return sa.create_engine(
        parts,
        connect_args={**arguments, "options": options.strip()},
        pool_size=1,
        max_overflow=0,
        pool_timeout=TURN_S,
        isolation_level="READ COMMITTED",
        hide_parameters=True,
    )
