"""The store on SQLAlchemy Core: `SqlTables` says what is written, `SqlStore` is it over one SQLite file.

One connection under a lock for state: writers of this process queue up in order, and those of another
(`hostler key create` beside a controller) are waited for up to `busy_timeout_s`. WAL, so readers
never block, and a connection of their own, so they do not queue behind a writer that waits;
`synchronous=FULL`, so what was acknowledged survives a power cut. Events and usage have a third one: no
flush of their own, because a chatty download must not cost one a line, and a short wait.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from hostler.app.auth import StoredKey
from hostler.core.deployment import Deployment
from hostler.core.errors import StartupError, StorageFailed
from hostler.core.launch import Launch
from hostler.core.model import WorkerType, worker_key
from hostler.core.worker import OperatorEvent
from hostler.storage import tables
from hostler.storage.database import FileLine, connect, open_database
from hostler.storage.line import Line
from hostler.storage.members import SqlMembers
from hostler.storage.store import EVENTS_KEPT
from hostler.storage.usage import SqlUsage

T = TypeVar("T")

EVENT_WAIT_S = 0.2  # for the write lock


class SqlTables(SqlUsage, SqlMembers):
    """A store over three lines to a database: one for state, one that does not flush, one that reads."""

    _state: Line

    def deployments(self) -> tuple[Deployment, ...]:
        table = tables.deployments
        return self._all(
            sa.select(table.c.body).order_by(table.c.name, table.c.worker_type), Deployment
        )

    def save_deployment(self, deployment: Deployment) -> None:
        with self._state.writing() as connection:
            self._put(
                connection,
                tables.deployments,
                name=deployment.name,
                worker_type=deployment.worker_type.value,
                body=_json(deployment),
            )

    def delete_deployment(self, name: str, worker_type: WorkerType) -> bool:
        table = tables.deployments
        where = sa.and_(table.c.name == name, table.c.worker_type == worker_type.value)
        with self._state.writing() as connection:
            gone = connection.execute(sa.delete(table).where(where).returning(table.c.body))
            if (body := gone.scalar_one_or_none()) is None:
                return False
            one = msgspec.json.decode(body, type=Deployment)
            name = f"generation:{one.worker_key}"
            self._put(connection, tables.counters, name=name, value=one.generation)
            return True

    def last_generation(self, name: str, worker_type: WorkerType) -> int:
        table = tables.counters
        counter = f"generation:{worker_key(name, worker_type)}"
        rows = self._reads.rows(sa.select(table.c.value).where(table.c.name == counter))
        return int(rows[0][0]) if rows else 0

    def launches(self) -> tuple[Launch, ...]:
        table = tables.launches
        return self._all(sa.select(table.c.body).order_by(table.c.instance_id), Launch)

    def save_launch(self, launch: Launch) -> None:
        with self._state.writing() as connection:
            self._put(
                connection,
                tables.launches,
                instance_id=launch.instance_id,
                body=_json(launch),
            )

    def delete_launch(self, instance_id: str) -> bool:
        table = tables.launches
        with self._state.writing() as connection:
            found = connection.execute(sa.delete(table).where(table.c.instance_id == instance_id))
            return found.rowcount > 0

    def keys(self) -> tuple[StoredKey, ...]:
        table = tables.keys
        return self._all(
            sa.select(table.c.body).order_by(table.c.created_at_s, table.c.key_id), StoredKey
        )

    def save_key(self, key: StoredKey) -> None:
        with self._state.writing() as connection:
            self._put(connection, tables.keys, **_row_of(key))

    def revoke_key(self, key_id: str) -> bool:
        query = sa.select(tables.keys.c.body).where(tables.keys.c.key_id == key_id)
        with self._state.writing() as connection:
            body = connection.execute(query).scalar_one_or_none()
            if body is None:
                return False
            key = msgspec.json.decode(body, type=StoredKey)
            view = msgspec.structs.replace(key.view, revoked=True)
            self._put(connection, tables.keys, **_row_of(msgspec.structs.replace(key, view=view)))
            return True

    def drop_keys(self, key_ids: Sequence[str]) -> int:
        table = tables.keys
        with self._state.writing() as connection:
            return connection.execute(sa.delete(table).where(table.c.key_id.in_(key_ids))).rowcount

    def append_event(self, event: OperatorEvent, *more: OperatorEvent) -> int:
        *before, last = event, *more
        table = tables.events
        with self._log.writing() as connection:
            if before:
                rows = [{"model": one.model, "body": _json(one)} for one in before]
                connection.execute(sa.insert(table), rows)
            # the number is the table's; the body's own is not read back
            row = connection.execute(sa.insert(table).values(model=last.model, body=_json(last)))
            seq = int(row.inserted_primary_key[0])  # type: ignore[index]
            connection.execute(sa.delete(table).where(table.c.seq <= seq - EVENTS_KEPT))
            return seq

    def events(
        self, after_seq: int = 0, limit: int = 500, model: str | None = None
    ) -> tuple[OperatorEvent, ...]:
        table = tables.events
        query = sa.select(table.c.seq, table.c.body).where(table.c.seq > after_seq)
        if model is not None:
            query = query.where(table.c.model == model)
        rows = self._reads.rows(query.order_by(table.c.seq).limit(max(limit, 0)))
        decode = msgspec.json.Decoder(OperatorEvent).decode
        with self._reads.decoding():
            return tuple(msgspec.structs.replace(decode(body), seq=seq) for seq, body in rows)

    def last_seq(self) -> int:
        return int(self._reads.rows(sa.select(sa.func.max(tables.events.c.seq)))[0][0] or 0)

    def next_incarnation(self) -> int:
        return self._next("incarnation")

    def next_epoch(self, worker_key: str, replica: int) -> int:
        return self._next(f"epoch:{worker_key}:{replica}")

    def check(self) -> None:
        """Read what a controller needs at its start.

        Raises:
            StartupError: a row cannot be read; nothing was changed.
        """
        try:
            self.deployments()
            self.launches()
            self.keys()
            self.tokens()
            self.hosts()
        except StorageFailed as error:
            raise StartupError(error.message) from error

    # Private

    def _next(self, name: str) -> int:
        table = tables.counters
        order = self._state.insert(table).values(name=name, value=1)
        order = order.on_conflict_do_update(
            index_elements=[table.c.name], set_={"value": table.c.value + 1}
        )
        with self._state.writing() as connection:
            return int(connection.execute(order.returning(table.c.value)).scalar_one())

    def _all(self, query: sa.Select[Any], kind: type[T]) -> tuple[T, ...]:
        decode = msgspec.json.Decoder(kind).decode
        rows = self._reads.rows(query)
        with self._reads.decoding():
            return tuple(decode(body) for (body,) in rows)

    def _put(self, connection: sa.Connection, table: sa.Table, **values: object) -> None:
        """Add a row, or replace the one with the same primary key."""
        order = self._state.insert(table).values(**values)
        rest = {name: values[name] for name in values if not table.c[name].primary_key}
        connection.execute(
            order.on_conflict_do_update(index_elements=list(table.primary_key), set_=rest)
        )


class SqlStore(SqlTables):
    """What a controller keeps, in one file that only its owner can read.

    Raises:
        StartupError: the file is damaged, of a newer Hostler, or cannot be opened. A file that is
            there is never replaced by an empty one.
        StorageBusy, InsufficientStorage: another process holds it, or the disk is full.
    """

    _state: FileLine
    _log: FileLine
    _reads: FileLine

    def __init__(self, path: Path, *, busy_timeout_s: float = 5.0) -> None:
        wait_s = min(EVENT_WAIT_S, busy_timeout_s)
        with ExitStack() as opened:

            def line(connection: sa.Connection) -> FileLine:
                made = FileLine(connection, path)
                opened.callback(made.close)
                return made

            self._state = line(open_database(path, busy_timeout_s))
            self._log = line(connect(path, wait_s, flush=False))
            self._reads = line(connect(path, wait_s, flush=False))
            self.check()
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()


# Private


def _row_of(key: StoredKey) -> dict[str, object]:
    view = key.view
    return {
        "key_id": view.key_id,
        "created_at_s": key.created_at_s,
        "revoked": view.revoked,
        "body": _json(key),
    }


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
