"""Board: which gateway of this machine has how many requests where. A small file that all of them map.

A row a subject (an instance, or a model that is waited for), a column a process. Each process writes its own
column and reads the others', without a lock: a cell is one aligned number. Only a new row is made under a
lock. The supervisor lends columns and clears the one of a process that has ended.

Two gateways that look at the same moment may both take the last slot: the sum can pass an instance's slots by
one less than there are gateways, for as long as one of these requests lasts.
"""

import fcntl
import mmap
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from hostler.core.errors import StartupError

COLUMNS = 64  # processes at once, those that leave included
ROWS = 1024
_NAME_CELLS = 4  # 16 bytes of digest
_CELLS = COLUMNS + _NAME_CELLS
_BYTES = 4 * (COLUMNS + ROWS * _CELLS)  # first a cell a column: is it lent?


class Board:
    """The mapped file."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        """is_new: make it, empty. For the supervisor alone."""
        if is_new:  # another file: gateways of an earlier supervisor may have the old one still
            path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if is_new else 0)
        self._file = os.open(path, flags, 0o600)
        if is_new:
            os.ftruncate(self._file, _BYTES)
        self._map = mmap.mmap(self._file, _BYTES)
        self._cells = memoryview(self._map).cast("I")
        self._rows: dict[str, int] = {}  # first cell of a subject's columns

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        os.close(self._file)

    # For the supervisor

    def lend(self) -> int:
        """Return a column that nobody has.

        Raises:
            StartupError: all are in use.
        """
        for column in range(COLUMNS):
            if not self._cells[column]:
                self._cells[column] = 1
                return column
        raise StartupError(f"{COLUMNS} gateways run or leave already; wait for those that leave")

    def take_back(self, column: int) -> None:
        """Its process has ended, and with it every request it had."""
        for row in range(ROWS):
            self._cells[COLUMNS + row * _CELLS + _NAME_CELLS + column] = 0
        self._cells[column] = 0

    # For a gateway

    def lent(self) -> tuple[int, ...]:
        """The columns of all processes there are."""
        return tuple(column for column in range(COLUMNS) if self._cells[column])

    def write(self, subject: str, column: int, count: int) -> None:
        self._cells[self._row(subject) + column] = count

    def read(self, subject: str, column: int) -> int:
        return self._cells[self._row(subject) + column]

    def total(self, subject: str, columns: Iterable[int]) -> int:
        """The sum of these columns."""
        row, cells = self._row(subject), self._cells
        return sum(cells[row + column] for column in columns)

    def keep_only(self, subjects: Iterable[str]) -> None:
        """Forget where the others are; their rows may go to new ones."""
        known = set(subjects)
        self._rows = {
            subject: row
            for subject, row in self._rows.items()
            if subject in known and self._name(row) == _digest(subject)
        }

    # Private

    def _row(self, subject: str) -> int:
        row = self._rows.get(subject)
        if row is None:
            row = self._rows[subject] = self._find(subject)
        return row

    def _find(self, subject: str) -> int:
        """Return the row of a subject; make one if there is none."""
        digest = _digest(subject)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # never held for longer than this look
        try:
            first = COLUMNS + _NAME_CELLS
            row = -1
            for other in range(first, first + ROWS * _CELLS, _CELLS):
                name = self._name(other)
                if name == digest:
                    return other
                if name == _NOBODY:
                    row = other
                    break
            row = row if row >= 0 else self._unused()
            start = 4 * (row - _NAME_CELLS)
            self._map[start : start + len(digest)] = digest
            return row
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _unused(self) -> int:
        """A row in which nobody counts anything now: its subject is gone, or comes back elsewhere."""
        first, known = COLUMNS + _NAME_CELLS, frozenset(self._rows.values())
        rows = range(first, first + ROWS * _CELLS, _CELLS)
        return next((r for r in rows if r not in known and not any(self._columns(r))), first)

    def _name(self, row: int) -> bytes:
        start = 4 * (row - _NAME_CELLS)
        return self._map[start : start + 4 * _NAME_CELLS]

    def _columns(self, row: int) -> memoryview:
        return self._cells[row : row + COLUMNS]


class Bells:
    """How gateways of one machine wake one another: a datagram socket a column."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ring(self, column: int) -> None:
        """Wake the one that has this column. One that does not listen now is not waited for."""
        with suppress(OSError):
            self._line.sendto(b"!", str(bell_path(self._folder, column)))

    def close(self) -> None:
        self._line.close()


def bell_path(folder: Path, column: int) -> Path:
    return folder / f"bell-{column}.sock"


# Private

_NOBODY = bytes(4 * _NAME_CELLS)


def _digest(subject: str) -> bytes:
    return blake2b(subject.encode(), digest_size=4 * _NAME_CELLS).digest()
