"""Handlers for worker logs: the last lines, and the new ones as they come (server-sent events).

Which log is read comes from the manager, by an instance id it knows; no part of an address is ever
joined to a path. Keys that an engine might have printed are blanked where a log is read. A log of another
machine is asked for there; while that is silent, a line says so.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from starlette.responses import PlainTextResponse, Response

from hostler.admin.control import LogSource
from hostler.admin.messages import InstanceLog, LogAnswer
from hostler.admin.models import find_deployment
from hostler.admin.operation import Call, Services, Stream
from hostler.core.errors import NotFound
from hostler.core.trust import LogUnavailable

AT_ONCE = 16  # logs read side by side
ALL_S = 15.0  # for the last lines of all of them
ANSWER_BYTES = 16 * 1024 * 1024  # of lines in an answer
AGAIN_S = 2.0  # until a machine is asked again that did not answer
_LOOK_S = 0.25  # between two looks at a file: Python's library cannot wait for one to grow


async def instance_logs(call: Call) -> LogAnswer | Response:
    instance_id = call.path_value("instance_id")
    log = call.services.control.log_of(instance_id)
    if log is None:
        raise NotFound(f"no instance {instance_id[:80]!r} here")
    return await _answer(call, [_Tail(instance_id, log)], is_one=True)


async def model_logs(call: Call) -> LogAnswer | Response:
    control = call.services.control
    found = find_deployment(control, call.path_value("name"), call.query.worker_type)
    tails = []
    for one in control.run_data(found.name):
        if one.worker_key == found.worker_key and (log := control.log_of(one.instance_id)):
            tails.append(_Tail(one.instance_id, log))
    return await _answer(call, tails)


# Private


class _Tail:
    """One log that is shown, and whether it could be read when it was last looked at."""

    def __init__(self, instance_id: str, log: LogSource) -> None:
        self.instance_id = instance_id
        self.error = f"it was not read within {ALL_S:g} s"
        self._log = log
        self._again_at_s = 0.0

    async def last(self, count: int) -> tuple[str, ...]:
        """Return the last lines; none where `error` says why."""
        try:
            lines = await self._log.last_lines(count)
        except LogUnavailable as error:
            self._note(error)
            return ()
        self.error = ""
        return tuple(lines)

    async def new(self) -> list[str]:
        """Return what is new; a line of ours when its machine falls silent, and when it is back."""
        if time.monotonic() < self._again_at_s:
            return []
        try:
            lines = await self._log.new_lines()
        except LogUnavailable as error:
            was_silent = bool(self.error)
            self._note(error)
            return [] if was_silent else [self.told]
        if self.error:
            self.error = ""
            return ["-- it answers again --", *lines]
        return lines

    @property
    def told(self) -> str:
        """Why there is nothing, as a line of the log."""
        return f"-- {self.error} --"

    def shown(self, lines: Sequence[str]) -> InstanceLog:
        return InstanceLog(instance_id=self.instance_id, lines=tuple(lines), error=self.error)

    async def close(self) -> None:
        await self._log.close()

    def _note(self, error: LogUnavailable) -> None:
        self.error = error.message
        self._again_at_s = time.monotonic() + AGAIN_S


async def _answer(
    call: Call, tails: Sequence[_Tail], *, is_one: bool = False
) -> LogAnswer | Response:
    """is_one: the address names it; then it is an error that it cannot be read."""
    count = call.query.tail
    is_plain = "text/plain" in call.request.headers.get("accept", "")
    write = _Plain(len(tails) > 1) if is_plain else _sse
    if call.query.follow:
        parts = _stream(call.services, tails, count, write)
        media = "text/plain" if is_plain else "text/event-stream"
        return Stream(parts, call.services.followers, media)
    try:
        found = _bounded(tails, await _last(tails, count))
    finally:
        await _close(tails)
    if is_one and found[0].error:
        raise LogUnavailable(found[0].error)
    if is_plain:
        told = (_with_error(one) for one in found)
        return PlainTextResponse(b"".join(write(*one) for one in told))
    return LogAnswer(logs=tuple(found))


async def _last(tails: Sequence[_Tail], count: int) -> dict[str, tuple[str, ...]]:
    """Return the last lines of each log that could be read in time, by instance."""
    found: dict[str, tuple[str, ...]] = {}
    places = asyncio.Semaphore(AT_ONCE)

    async def one(tail: _Tail) -> None:
        async with places:
            found[tail.instance_id] = await tail.last(count)

    try:
        async with asyncio.timeout(ALL_S), asyncio.TaskGroup() as tasks:
            for tail in tails:
                tasks.create_task(one(tail), name=f"log.{tail.instance_id}")
    except TimeoutError:
        return found
    return found


async def _new(tails: Sequence[_Tail]) -> list[tuple[str, list[str]]]:
    """Return what is new of each log, in their order."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(tail: _Tail) -> tuple[str, list[str]]:
        async with places:
            return tail.instance_id, await tail.new()

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(one(tail), name=f"log.{tail.instance_id}") for tail in tails]
    return [task.result() for task in asked]


def _bounded(tails: Sequence[_Tail], found: dict[str, tuple[str, ...]]) -> list[InstanceLog]:
    """Return the logs, in their order, as far as one answer may hold them."""
    shown, left = [], ANSWER_BYTES
    for tail in tails:
        lines = found.get(tail.instance_id, ())
        left -= sum(map(len, lines))
        if left < 0:
            tail.error = (
                "left out: the answer is too long; ask for fewer lines, or for this instance"
            )
            lines = ()
        shown.append(tail.shown(lines))
    return shown


async def _close(tails: Sequence[_Tail]) -> None:
    for tail in tails:
        await tail.close()


Write = Callable[[str, Sequence[str]], bytes]  # an instance id and lines of its log


def _with_error(log: InstanceLog) -> tuple[str, Sequence[str]]:
    return log.instance_id, [f"-- {log.error} --"] if log.error else log.lines


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
    services: Services, tails: Sequence[_Tail], count: int, write: Write
) -> AsyncGenerator[bytes, None]:
    """Yield the last lines, then new ones, until the client goes or no log is left."""
    silent_s = 0.0
    try:
        for log in _bounded(tails, await _last(tails, count)):
            yield write(*_with_error(log))
        while any(_is_known(services, tail) for tail in tails):
            for instance_id, lines in await _new(tails):
                if lines:
                    yield write(instance_id, lines)
                    silent_s = 0.0
            if silent_s >= services.keep_alive_s and write is _sse:
                yield b": keep-alive\n\n"
                silent_s = 0.0
            await asyncio.sleep(_LOOK_S)
            silent_s += _LOOK_S
    finally:
        await _close(tails)


def _is_known(services: Services, tail: _Tail) -> bool:
    return services.control.log_of(tail.instance_id) is not None
