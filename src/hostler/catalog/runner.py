"""Run a download client as a child of ours: watched, bounded, killed whole when cancelled."""

import asyncio
import contextlib
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hostler.core.errors import InsufficientStorage, ModelSourceError

T = TypeVar("T")

_WATCH_S = 0.2
_KEPT_LINES = 60
_LINE_BYTES = 4096
_LOGIN = re.compile(r"(//)[^/@\s'\"]+@")
_TOKEN = re.compile(r"\b(?:hf_|pypi-|ghp_)[A-Za-z0-9_-]{8,}")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BROKEN = re.compile(r"connection broken by '(\w+)")
_SYSTEM_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
_NOISE = ("[notice]", "warning:", "hint:")
_FULL_DISK = re.compile(r"No space left on device|\[Errno 28\]|Disk quota exceeded")


async def run_client(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    what: str,
    advice: str,
    stall_s: float,
    on_bytes: Callable[[int], None],
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run a command until it ends well, while watching `folder` grow.

    what: names the fetch in messages. advice: what to do when it fails.
    on_bytes: gets the size of the largest file below `folder`, whenever it has changed.

    Raises:
        ModelSourceError: it failed (with its last useful line) or made no progress for `stall_s`.
        InsufficientStorage: it said that the disk is full.
    """
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        limit=_LINE_BYTES * 16,
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read_lines(process, lines, on_line))
            watch = tasks.create_task(_watch(folder, lines, stall_s, on_bytes))
            await reader
            await process.wait()
            watch.cancel()
    except* _Stalled:
        raise ModelSourceError(
            f"{what}: no new byte for {stall_s:.0f} s; "
            f"{last_useful_line(lines) or 'no message'}; {advice}"
        ) from None
    finally:
        await _end(process)
    if process.returncode == 0:
        return
    if any(_FULL_DISK.search(line) for line in lines):
        raise InsufficientStorage(
            f"the disk ran full while fetching {what}; the parts were removed; "
            "delete models that are not used and try again"
        )
    reason = last_useful_line(lines) or f"the client ended with status {process.returncode}"
    raise ModelSourceError(f"{what}: {reason}; {advice}")


def last_useful_line(lines: Sequence[str]) -> str:
    """Return what a person should read of a client's output, without logins or tokens.

    A broken connection goes before the error it led to: pip then only says that it found nothing.
    """
    texts = [text for line in lines if (text := _COLOUR.sub("", line).strip())]
    for text in texts:
        if broken := _BROKEN.search(text):
            reason = _SYSTEM_REASON.search(text)
            return f"the server cannot be reached ({reason[1] if reason else broken[1]})"
    errors = [text for text in texts if text.lower().startswith(("error:", "fatal"))]
    told = [text for text in errors if "Could not find a version" in text] or errors[-1:]
    plain = [text for text in texts if not text.lower().startswith(_NOISE)]
    return _redacted((told or plain[-1:] or [""])[-1])


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run blocking work in a thread; when cancelled, tell it by the event and wait for its end."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(Stopped, OSError):
            await future
        raise


class Stopped(Exception):
    """Raised by work in a thread that found its event set."""


def largest_file(folder: Path) -> int:
    """Return the size of the largest file below a folder; files may come and go meanwhile."""
    largest = 0
    for place, _, names in os.walk(folder, onerror=lambda error: None):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.lstat(os.path.join(place, name)).st_size)
    return largest


# Private


class _Stalled(Exception):
    pass


async def _read_lines(
    process: asyncio.subprocess.Process, lines: deque[str], on_line: Callable[[str], None] | None
) -> None:
    assert process.stdout is not None
    rest = b""
    while chunk := await process.stdout.read(_LINE_BYTES):
        *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = rest[-_LINE_BYTES:]
        for raw in whole:
            line = raw[:_LINE_BYTES].decode(errors="replace")
            lines.append(line)
            if on_line is not None:
                on_line(line)
    if rest:
        lines.append(rest.decode(errors="replace"))


async def _watch(
    folder: Path, lines: deque[str], stall_s: float, on_bytes: Callable[[int], None]
) -> None:
    clock = asyncio.get_running_loop().time
    seen: tuple[int, str] = (0, "")
    moved_at = clock()
    while True:
        await asyncio.sleep(_WATCH_S)
        now = (largest_file(folder), lines[-1] if lines else "")
        if now != seen:
            if now[0] != seen[0]:
                on_bytes(now[0])
            seen, moved_at = now, clock()
        elif clock() - moved_at > stall_s:
            raise _Stalled


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave nothing of the child's session behind, however we got here."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await asyncio.shield(process.wait())


def _redacted(text: str) -> str:
    text = (
        _TOKEN.sub("***", _LOGIN.sub(r"\1***@", text))
        .removeprefix("ERROR: ")
        .removeprefix("Error: ")
    )
    return text if len(text) <= 400 else f"{text[:397]}..."
