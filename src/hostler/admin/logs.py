"""Handlers for worker logs: the last lines, and the new ones as they come.

Which file is read comes from the manager, by an instance id it knows; no part of an address is ever
joined to a path. Keys that an engine might have printed are blanked.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from hostler.admin.messages import InstanceLog, LogAnswer
from hostler.admin.models import find_deployment
from hostler.admin.operation import Call, Services
from hostler.app.telemetry import redact
from hostler.core.errors import NotFound

_TAIL_BYTES = 1024 * 1024  # read from the end of a file, at most
_STEP_BYTES = 64 * 1024
_LOOK_S = 0.25  # between two looks at a file: Python's library cannot wait for one to grow


async def instance_logs(call: Call) -> LogAnswer | Response:
    instance_id = call.path_value("instance_id")
    path = call.services.control.log_path(instance_id)
    if path is None:
        raise NotFound(f"no instance {instance_id[:80]!r} here")
    return await _answer(call, [LogTail(instance_id, path)])


async def model_logs(call: Call) -> LogAnswer | Response:
    control = call.services.control
    found = find_deployment(control, call.path_value("name"), call.query.worker_type)
    tails = []
    for one in control.run_data(found.name):
        path = control.log_path(one.instance_id)
        if one.worker_key == found.worker_key and path is not None:
            tails.append(LogTail(one.instance_id, path))
    return await _answer(call, tails)


class LogTail:
    """One log file, read from near its end onwards. It need not be there yet."""

    def __init__(self, instance_id: str, path: Path) -> None:
        self.instance_id = instance_id
        self._path = path
        self._place = 0  # of the first byte not read
        self._part = b""  # of a line whose end has not been written

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines, and stand behind them. From a long file, those in its last MiB."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - _TAIL_BYTES)
                file.seek(start)
                data = file.read(size - start)
        except FileNotFoundError:
            return []
        self._place = size
        *lines, self._part = data.split(b"\n")
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
                data = file.read(_STEP_BYTES)
        except FileNotFoundError:
            return []
        self._place += len(data)
        *lines, self._part = (self._part + data).split(b"\n")
        if len(self._part) > _STEP_BYTES:  # a line without an end must not fill the memory
            lines, self._part = [*lines, self._part], b""
        return _shown(lines)


# Private


async def _answer(call: Call, tails: Sequence[LogTail]) -> LogAnswer | Response:
    count = call.query.tail
    if call.query.follow:
        call.services.followers.enter()
        return StreamingResponse(
            _stream(call.services, tails, count),
            media_type="text/plain",
            headers={"x-accel-buffering": "no"},
        )
    found = [await asyncio.to_thread(tail.last_lines, count) for tail in tails]
    if "text/plain" in call.request.headers.get("accept", ""):
        writer = _Writer(len(tails) > 1)
        parts = zip(tails, found, strict=True)
        return PlainTextResponse(
            b"".join(writer.text(tail.instance_id, lines) for tail, lines in parts)
        )
    return LogAnswer(
        logs=tuple(
            InstanceLog(instance_id=tail.instance_id, lines=tuple(lines))
            for tail, lines in zip(tails, found, strict=True)
        )
    )


class _Writer:
    """Puts lines of several logs into one text, with a heading where the log changes."""

    def __init__(self, has_headings: bool) -> None:
        self._has_headings = has_headings
        self._current = ""

    def text(self, instance_id: str, lines: Sequence[str]) -> bytes:
        if not lines:
            return b""
        heading = ""
        if self._has_headings and self._current != instance_id:
            heading = f"==> {instance_id} <==\n"
        self._current = instance_id
        return (heading + "\n".join(lines) + "\n").encode()


async def _stream(services: Services, tails: Sequence[LogTail], count: int) -> AsyncIterator[bytes]:
    """Yield the last lines, then new ones, until the client goes or no log is left."""
    writer = _Writer(len(tails) > 1)
    try:
        for tail in tails:
            yield writer.text(tail.instance_id, await asyncio.to_thread(tail.last_lines, count))
        while any(services.control.log_path(tail.instance_id) for tail in tails):
            for tail in tails:
                lines = await asyncio.to_thread(tail.new_lines)
                if lines:
                    yield writer.text(tail.instance_id, lines)
            await asyncio.sleep(_LOOK_S)
    finally:
        services.followers.leave()


def _shown(lines: Sequence[bytes]) -> list[str]:
    return [redact(line.decode("utf-8", "replace").rstrip("\r")) for line in lines]
