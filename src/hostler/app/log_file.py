"""LogFile: one log file, read from near its end onwards, without secrets. Its writer is another process."""

import os
from collections.abc import Sequence
from pathlib import Path

from hostler.app.telemetry import redact

TAIL_BYTES = 1024 * 1024  # read from the end of a file, at most
STEP_BYTES = 64 * 1024  # read at once of what is new


class LogFile:
    """A place in a log, which need not be there yet. It blocks: for threads."""

    def __init__(self, path: Path, place: int = 0) -> None:
        """place: of the first byte not read."""
        self._path = path
        self._place = place
        self._part = b""  # of a line whose end has not been written

    @property
    def place(self) -> int:
        """Where another reader goes on: behind the last whole line."""
        return self._place - len(self._part)

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines, and stand behind them. From a long file, those in its last MiB."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - TAIL_BYTES)
                file.seek(start)
                data = file.read(size - start)
        except FileNotFoundError:
            return []
        self._place = size
        lines = data.split(b"\n")
        if not lines[-1]:
            del lines[-1]  # else a last line whose writer died, or has not finished it
        if start and lines:
            del lines[0]  # its beginning was not read
        return _shown(lines[-count:]) if count else []

    def new_lines(self) -> list[str]:
        """Return the whole lines written since the last look. A file that shrank was cut or begun
        anew: it is read on from its present end."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._place:
                    self._place, self._part = size, b""
                file.seek(self._place)
                data = file.read(STEP_BYTES)
        except FileNotFoundError:
            return []
        self._place += len(data)
        *lines, self._part = (self._part + data).split(b"\n")
        if len(self._part) >= STEP_BYTES:  # a line without an end must not fill the memory
            lines, self._part = [*lines, self._part], b""
        return _shown(lines)


# Private


def _shown(lines: Sequence[bytes]) -> list[str]:
    return [redact(line.decode("utf-8", "replace").rstrip("\r")) for line in lines]
