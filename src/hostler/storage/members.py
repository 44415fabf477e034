"""SqlMembers: the part of `SqlStore` that keeps join tokens, and the machines that came in by them."""

from typing import TypeVar

import msgspec
import sqlalchemy as sa

from hostler.app.tokens import (
    KEPT_S,
    StoredHost,
    StoredToken,
    admitted,
)
from hostler.storage import tables
from hostler.storage.line import Line

T = TypeVar("T")


class SqlMembers:
    """Needs two connections of the store: one that writes, one that only reads."""

    _state: Line
    _reads: Line

    def tokens(self) -> tuple[StoredToken, ...]:
        table = tables.tokens
        query = sa.select(table.c.body).order_by(table.c.created_at_s, table.c.token_id)
        return self._listed(query, StoredToken)

    def save_token(self, token: StoredToken) -> None:
        table = tables.tokens
        with self._state.writing() as connection:
            _put_token(connection, token)
            is_old = table.c.expires_at_s < token.created_at_s - KEPT_S
            connection.execute(sa.delete(table).where(is_old))

    def revoke_token(self, token_id: str) -> bool:
        with self._state.writing() as connection:
            token = _token(connection, token_id)
            if token is not None:
                _put_token(connection, msgspec.structs.replace(token, revoked=True))
            return token is not None

    def admit(self, host: StoredHost, now_s: float) -> StoredHost:
        table = tables.hosts
        with self._state.writing() as connection:
            token = _token(connection, host.token_id)
            # of ten thousand, those alone are read that may have the same key
            is_same = table.c.body.contains(host.key_hash, autoescape=True)
            here = sa.select(table.c.body).where(table.c.removed_at_s.is_(None), is_same)
            known = [_host_of(body) for (body,) in connection.execute(here)]
            admission = admitted(token, known, host, now_s)
            if admission.is_news:
                _put_token(connection, admission.token)
                _put_host(connection, admission.host)
            return admission.host

    def hosts(self) -> tuple[StoredHost, ...]:
        table = tables.hosts
        query = sa.select(table.c.body).order_by(table.c.joined_at_s, table.c.host_id)
        return self._listed(query, StoredHost)

    def save_host(self, host: StoredHost) -> bool:
        with self._state.writing() as connection:
            before = _host(connection, host.host_id)
            if before is not None and before.is_removed:
                return False
            _put_host(connection, host)
            return True

    def remove_host(self, host_id: str, now_s: float) -> bool:
        table = tables.hosts
        with self._state.writing() as connection:
            host = _host(connection, host_id)
            if host is None or host.is_removed:
                return False
            _put_host(connection, msgspec.structs.replace(host, removed_at_s=now_s))
            connection.execute(sa.delete(table).where(table.c.removed_at_s < now_s - KEPT_S))
            return True

    # Private

    def _listed(self, query: sa.Select[tuple[str]], kind: type[T]) -> tuple[T, ...]:
        rows = self._reads.rows(query)
        with self._reads.decoding():
            return tuple(msgspec.json.decode(body, type=kind) for (body,) in rows)


def _token(connection: sa.Connection, token_id: str) -> StoredToken | None:
    table = tables.tokens
    query = sa.select(table.c.body).where(table.c.token_id == token_id)
    body = connection.execute(query).scalar_one_or_none()
    return None if body is None else msgspec.json.decode(body, type=StoredToken)


def _host(connection: sa.Connection, host_id: str) -> StoredHost | None:
    table = tables.hosts
    query = sa.select(table.c.body).where(table.c.host_id == host_id)
    body = connection.execute(query).scalar_one_or_none()
    return None if body is None else _host_of(body)


def _host_of(body: str) -> StoredHost:
    return msgspec.json.decode(body, type=StoredHost)


def _put_token(connection: sa.Connection, token: StoredToken) -> None:
    table = tables.tokens
    connection.execute(sa.delete(table).where(table.c.token_id == token.token_id))
    row = sa.insert(table).values(
        token_id=token.token_id,
        created_at_s=token.created_at_s,
        expires_at_s=token.expires_at_s,
        body=msgspec.json.encode(token).decode(),
    )
    connection.execute(row)


def _put_host(connection: sa.Connection, host: StoredHost) -> None:
    table = tables.hosts
    connection.execute(sa.delete(table).where(table.c.host_id == host.host_id))
    row = sa.insert(table).values(
        host_id=host.host_id,
        token_id=host.token_id,
        joined_at_s=host.joined_at_s,
        removed_at_s=host.removed_at_s,
        body=msgspec.json.encode(host).decode(),
    )
    connection.execute(row)
