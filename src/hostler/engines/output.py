"""EngineOutput: what an engine prints, always drained, kept within bounds."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

RING_BYTES = 1024 * 1024
FILE_BYTES = 10 * 1024 * 1024
FILES = 3
RATE_BYTES = 1024 * 1024  # a second, to disk; what is over is counted and dropped
_READ_BYTES = 64 * 1024


class EngineOutput:
    """The last megabyte in memory, and a rotating file of at most FILES times FILE_BYTES."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """path: None keeps it in memory only."""
        self._path = path
        self._clock = clock
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._file: int | None = None
        self._file_bytes = 0
        self._budget = float(RATE_BYTES)
        self._filled_at_s = clock()
        self._dropped = 0
        self._reader: int | None = None

    def open(self) -> int:
        """Start draining in the running loop; return the descriptor for the engine to write to.

        The caller closes that descriptor once the engine has it.
        """
        if self._path is not None:
            self._open_file(self._path)
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        asyncio.get_running_loop().add_reader(self._reader, self._drain)
        return writer

    def close(self) -> None:
        """Take what is left in the pipe, and stop draining."""
        self._drain()
        self._stop_reading()
        if self._file is not None:
            self._tell_dropped()
            os.close(self._file)
            self._file = None

    def feed(self, data: bytes) -> None:
        """Keep what was printed."""
        self._ring.append(data)
        self._ring_bytes += len(data)
        while self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())
        if self._file is not None:
            self._write(data)

    def last_lines(self, count: int = 50) -> list[str]:
        lines = b"".join(self._ring).decode("utf-8", "replace").splitlines()
        return lines[-count:]

    # Private

    def _drain(self) -> None:
        """One read an event, so a flood leaves the loop time for others."""
        if self._reader is None:
            return
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.feed(data)
        else:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None

    def _write(self, data: bytes) -> None:
        now_s = self._clock()
        self._budget = min(RATE_BYTES, self._budget + (now_s - self._filled_at_s) * RATE_BYTES)
        self._filled_at_s = now_s
        if len(data) > self._budget:
            self._dropped += data.count(b"\n")
            return
        self._budget -= len(data)
        self._tell_dropped()
        self._append(data)

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._append(b"\n-- dropped %d lines: over 1 MiB a second --\n" % self._dropped)
            self._dropped = 0

    def _append(self, data: bytes) -> None:
        if self._file is None or self._path is None:
            return
        try:
            self._file_bytes += os.write(self._file, data)
        except OSError:  # the disk is full: the engine goes on without its log
            return
        if self._file_bytes >= FILE_BYTES:
            os.close(self._file)
            for number in range(FILES - 1, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number - 1}")
                source = older if number > 1 else self._path
                if source.exists():
                    source.rename(self._path.with_name(f"{self._path.name}.{number}"))
            self._open_file(self._path)

    def _open_file(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._file_bytes = path.stat().st_size
