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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from hostler.core.errors import StartupError

COLUMNS = 64  # processes at once, those that leave included
ROWS = 16_384  # subjects at once: 4.5 MB, of which the kernel holds what was written
PROBED = 256  # rows where a subject may stand, from the one its digest says
_NAME_CELLS = 4  # 16 bytes of digest
_CELLS = COLUMNS + _NAME_CELLS
_GIVEN = COLUMNS  # the cell that counts rows given to another subject; before it a cell a column: is it lent?
_HEADER = COLUMNS + 1


class Board:
    """The mapped file."""

    def __init__(self, path: Path, *, is_new: bool = False, rows: int = ROWS) -> None:
        """is_new: make it, empty, with so many rows. For the supervisor alone."""
        if is_new:  # another file: gateways of an earlier supervisor may have the old one still
            path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if is_new else 0)
        self._file = os.open(path, flags, 0o600)
        if is_new:
            os.ftruncate(self._file, 4 * (_HEADER + rows * _CELLS))
        size = os.fstat(self._file).st_size
        self._count = (size // 4 - _HEADER) // _CELLS
        self._map = mmap.mmap(self._file, size)
        self._cells = memoryview(self._map).cast("I")
        self._rows: dict[str, int] = {}  # first cell of a subject's columns
        self._given = self._cells[_GIVEN]

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
        """Its process has ended, and with it every request it had.

        Where nobody ever wrote nothing is touched: on a full disk that would be the end of this process.
        """
        for begin, end in self._written():
            first = max(0, (begin // 4 - _HEADER) // _CELLS)
            for row in range(first, min(self._count, (end // 4 - _HEADER) // _CELLS + 1)):
                cell = self._first(row) + column
                if begin <= 4 * cell < end and self._cells[cell]:
                    self._cells[cell] = 0
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

    def forget(self, subjects: Iterable[str]) -> None:
        """These are no more: their rows may go to new ones."""
        for subject in subjects:
            self._rows.pop(subject, None)

    # Private

    def _written(self) -> list[tuple[int, int]]:
        """The parts of the file that the kernel holds, by their first byte and the one after the last."""
        found: list[tuple[int, int]] = []
        end = 0
        with suppress(OSError):  # no more
            while True:
                begin = os.lseek(self._file, end, os.SEEK_DATA)
                end = os.lseek(self._file, begin, os.SEEK_HOLE)
                found.append((begin, end))
        return found

    def _first(self, row: int) -> int:
        """The first cell of a row's columns."""
        return _HEADER + row * _CELLS + _NAME_CELLS

    def _row(self, subject: str) -> int:
        if self._given != self._cells[_GIVEN]:  # a row of ours may be another subject's now
            self._given = self._cells[_GIVEN]
            rows = self._rows.items()
            self._rows = {one: row for one, row in rows if self._name(row) == _digest(one)}
        row = self._rows.get(subject)
        if row is None:
            row = self._rows[subject] = self._find(subject)
        return row

    def _find(self, subject: str) -> int:
        """Return the row of a subject; make one if there is none."""
        digest = _digest(subject)
        begin, count = int.from_bytes(digest[:4]), min(PROBED, self._count)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # never held for longer than this look
        try:
            rows = [self._first((begin + step) % self._count) for step in range(count)]
            for row in rows:
                name = self._name(row)
                if name == digest:
                    return row
                if name == _NOBODY:
                    break
            else:
                row = self._unused(rows)
                self._cells[_GIVEN] += 1
            start = 4 * (row - _NAME_CELLS)
            self._map[start : start + len(digest)] = digest
            return row
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _unused(self, rows: Sequence[int]) -> int:
        """One of these in which nobody counts anything now: its subject is gone, or comes back elsewhere."""
        known = frozenset(self._rows.values())
        return next((r for r in rows if r not in known and not any(self._columns(r))), rows[0])

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
