"""What a worker's log file tells: its last lines, and the reason it gave for ending."""

import asyncio
import os
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.log_file import LogFile
from hostler.app.paths import StatePaths
from hostler.app.telemetry import logger, redact

ERROR_MARK = (
    "hostler-error: "  # the worker's own line on stderr: `hostler-error: {"code":..,"message":..}`
)
KEPT_BYTES = 10 * 1024 * 1024  # a log larger than that is cut
KEPT_LOGS = 100  # of instances that are gone
LOOK_EVERY_S = 30.0

log = logger(__name__)
_TAIL_BYTES = 64 * 1024


def last_lines(path: Path, count: int = 50) -> list[str]:
    """Return the last lines of a log, none when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[-count:]


def engine_lines(paths: StatePaths, instance_id: str, count: int = 50) -> list[str]:
    """Return what an instance's engine printed last; its worker's lines when it has no log. No key."""
    lines = last_lines(paths.engine_log(instance_id), count)
    return [redact(line) for line in lines or last_lines(paths.worker_log(instance_id), count)]


def error_told(lines: list[str]) -> tuple[str, str] | None:
    """Return (code, message) of the last error the worker named itself, if it did."""
    for line in reversed(lines):
        if line.startswith(ERROR_MARK):
            try:
                found: Any = msgspec.json.decode(line[len(ERROR_MARK) :])
                return str(found["code"]), str(found["message"])
            except (msgspec.MsgspecError, KeyError, TypeError):
                return None
    return None


def exit_reason(code: int | None, lines: list[str]) -> str:
    """Say in one line why a worker's process ended."""
    if (told := error_told(lines)) is not None:
        return told[1]
    if code is None:
        return "its process is gone"
    if code < 0:
        return f"its process was killed by signal {-code}"
    return f"its process exited with {code}"


class LocalLog:
    """The log of one instance here, read in threads."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path)

    async def last_lines(self, count: int) -> list[str]:
        """Return the last lines, and stand behind them."""
        return await asyncio.to_thread(self._file.last_lines, count)

    async def new_lines(self) -> list[str]:
        """Return the whole lines since the last look."""
        return await asyncio.to_thread(self._file.new_lines)

    async def close(self) -> None:
        """Nothing is open between two looks."""


class LogKeeper:
    """Keeps the logs of workers and engines bounded, each and all together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def keep(self, living: Callable[[], Set[str]]) -> None:
        """Look again and again, until cancelled. living: the ids of the instances known now."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self.look(living())
            except OSError as error:  # a folder that is gone or full: look again later
                log.warning("logs.kept", why=str(error))

    def look(self, living: Set[str]) -> None:
        """Cut what is too large, and delete the oldest logs of instances that are gone."""
        gone: list[Path] = []
        for path in self._folder.glob("*-*.log"):
            if path.stem.partition("-")[2] in living:
                _trim(path)
            else:
                gone.append(path)
        with suppress(OSError):
            gone.sort(key=lambda path: path.stat().st_mtime)
            for path in gone[:-KEPT_LOGS]:
                path.unlink()


# Private


def _trim(path: Path) -> None:
    """Keep a log bounded. Its writer appends, so a cut file goes on at its start."""
    with suppress(OSError):
        if path.stat().st_size > KEPT_BYTES:
            kept = "\n".join(last_lines(path, 200))
            path.write_text(kept + "\n-- cut here: the log was over its limit --\n")
