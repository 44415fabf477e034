"""Handlers for worker logs: the last lines, and the new ones as they come (server-sent events).

Which file is read comes from the manager, by an instance id it knows; no part of an address is ever
joined to a path. Keys that an engine might have printed are blanked.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from hostler.admin.messages import InstanceLog, LogAnswer
from hostler.admin.models import find_deployment
from hostler.admin.operation import Call, Services, Stream
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
    is_plain = "text/plain" in call.request.headers.get("accept", "")
    write = _Plain(len(tails) > 1) if is_plain else _sse
    if call.query.follow:
        parts = _stream(call.services, tails, count, write)
        media = "text/plain" if is_plain else "text/event-stream"
        return Stream(parts, call.services.followers, media)
    found = [(tail.instance_id, await asyncio.to_thread(tail.last_lines, count)) for tail in tails]
    if is_plain:
        return PlainTextResponse(b"".join(write(*one) for one in found))
    return LogAnswer(
        logs=tuple(InstanceLog(instance_id=one, lines=tuple(lines)) for one, lines in found)
    )


Write = Callable[[str, Sequence[str]], bytes]  # an instance id and lines of its log


class _Plain:
    """Puts lines of several logs into one text, with a heading where the log changes."""

    def __init__(self, has_headings: bool) -> None:
        self._has_headings = has_headings
        self._current = ""

    def __call__(self, instance_id: str, lines: Sequence[str]) -> bytes:
        if not lines:
            return b""
        heading = ""
        if self._has_headings and self._current != instance_id:
            heading = f"==> {instance_id} <==\n"
        self._current = instance_id
        return (heading + "\n".join(lines) + "\n").encode()


def _sse(instance_id: str, lines: Sequence[str]) -> bytes:
    """One server-sent event a line, named after its instance."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (instance_id.encode(), _one_line(line).encode())
        for line in lines
    )


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")  # either would be a new field


async def _stream(
    services: Services, tails: Sequence[LogTail], count: int, write: Write
) -> AsyncIterator[bytes]:
    """Yield the last lines, then new ones, until the client goes or no log is left."""
    silent_s = 0.0
    for tail in tails:
        yield write(tail.instance_id, await asyncio.to_thread(tail.last_lines, count))
    while any(services.control.log_path(tail.instance_id) for tail in tails):
        for tail in tails:
            lines = await asyncio.to_thread(tail.new_lines)
            if lines:
                yield write(tail.instance_id, lines)
                silent_s = 0.0
        if silent_s >= services.keep_alive_s and write is _sse:
            yield b": keep-alive\n\n"
            silent_s = 0.0
        await asyncio.sleep(_LOOK_S)
        silent_s += _LOOK_S


def _shown(lines: Sequence[bytes]) -> list[str]:
    return [redact(line.decode("utf-8", "replace").rstrip("\r")) for line in lines]
