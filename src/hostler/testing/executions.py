"""Executions: what a fake engine did with each request it got, in memory and on disk.

The file has a line when an execution begins and one when it ends, so a SIGKILL loses neither.
"""

import os
import time
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

KEPT = 200_000  # the newest executions held in memory


class End(StrEnum):
    """How an execution ended."""

    RUNNING = "running"
    DONE = "done"  # the answer was written as the script asked, odd endings included
    REFUSED = "refused"  # an error status was written
    ABORTED = "aborted"  # the client left first
    CRASHED = "crashed"  # the script ended the process here
    KILLED = "killed"  # the process ended in the middle; only read_executions says this


class Execution(msgspec.Struct, kw_only=True):
    """One request, as the engine saw it. Times are CLOCK_MONOTONIC seconds, equal in all processes of a host.

    model: the engine's own, honest name. asked: the request's `model` field.
    digest: of the (first) prompt, see `fake_text.digest`.
    """

    number: int
    pid: int
    instance_id: str
    request_id: str
    path: str
    model: str
    asked: str
    digest: str
    body_keys: tuple[str, ...]
    stream: bool
    started_at_s: float
    first_token_at_s: float | None = None  # of a stream
    ended_at_s: float | None = None
    prompt_tokens: int = 0
    read_tokens: int = 0  # of them, where the script lets reading take time
    tokens: int = 0  # written to the client
    status: int = 200
    end: End = End.RUNNING


class Counts(msgspec.Struct, kw_only=True):
    executions: int = 0
    finished: int = 0
    refused: int = 0
    aborted: int = 0
    crashed: int = 0
    in_flight: int = 0


class ExecutionLog:
    """The executions of one engine process."""

    def __init__(self, path: str = "") -> None:
        """path: file to append JSON lines to, "" for none."""
        self.counts = Counts()
        self.records: deque[Execution] = deque(maxlen=KEPT)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600) if path else None

    def begin(self, execution: Execution) -> None:
        self.counts.executions += 1
        self.counts.in_flight += 1
        self.records.append(execution)
        self._write(execution)

    def end(self, execution: Execution, end: End) -> None:
        """Write down how it ended; a second call changes nothing."""
        if execution.end is not End.RUNNING:
            return
        execution.end = end
        execution.ended_at_s = time.monotonic()
        counts = self.counts
        counts.in_flight -= 1
        match end:
            case End.DONE:
                counts.finished += 1
            case End.REFUSED:
                counts.refused += 1
            case End.ABORTED:
                counts.aborted += 1
            case _:
                counts.crashed += 1
        self._write(execution)

    # Private

    def _write(self, execution: Execution) -> None:
        if self._file is not None:
            os.write(self._file, msgspec.json.encode(execution) + b"\n")


def read_executions(paths: Iterable[Path]) -> list[Execution]:
    """Return the executions in ledger files, each once; those without an end line are `End.KILLED`.

    Read it when the engines are gone or idle: a running execution looks like a killed one.
    """
    found: dict[tuple[int, str, int, float], Execution] = {}
    for path in paths:
        for line in path.read_bytes().splitlines():
            execution = msgspec.json.decode(line, type=Execution)
            key = (execution.pid, execution.instance_id, execution.number, execution.started_at_s)
            found[key] = execution
    for execution in found.values():
        if execution.end is End.RUNNING:
            execution.end = End.KILLED
    return sorted(found.values(), key=lambda execution: execution.started_at_s)
