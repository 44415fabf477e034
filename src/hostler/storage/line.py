"""Line: one way to a database, that several threads take in turn. SQLite's is in database.py,
PostgreSQL's in postgres.py; the tables above them are the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert


class Line(Protocol):
    """Reads and writes. Each may raise `StorageBusy`, `InsufficientStorage`, `StorageFailed`."""

    @property
    def insert(self) -> Callable[[sa.Table], Insert]:
        """Makes an INSERT that knows ON CONFLICT; PostgreSQL's has the same methods."""

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds, as it was at one moment."""

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """One transaction: all of it or nothing."""

    def decoding(self) -> AbstractContextManager[None]:
        """What cannot be read within is damage to this database."""

    def close(self) -> None:
        """Let go of it."""
