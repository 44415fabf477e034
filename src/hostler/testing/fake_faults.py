"""What the fake engine does to its own process: crash, flood, dump itself, leave grandchildren behind."""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from hostler.testing import fake_http
from hostler.testing.executions import End, Execution, ExecutionLog
from hostler.testing.fake_script import Script

GRANDCHILD_LIFE_S = 300  # they end by themselves, should a test fail to end them


def pid() -> int:
    return os.getpid()


def environment() -> dict[str, str]:
    """This process's environment as it was given to it, read from the kernel."""
    items = Path("/proc/self/environ").read_bytes().split(b"\0")
    pairs = (item.partition(b"=") for item in items if item)
    return {name.decode("utf-8", "surrogateescape"): _text(value) for name, _, value in pairs}


def dump(path: str) -> None:
    """Write this process's argv and environment to a file, as JSON, exactly as the kernel has them."""
    argv = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    data = {"argv": [_text(item) for item in argv], "env": environment()}
    part = Path(f"{path}.part")
    part.write_bytes(msgspec.json.encode(data))
    part.rename(path)


def crash(how: str, execution: Execution | None, log: ExecutionLog) -> NoReturn:
    """End this process. how: a signal's name or an exit code."""
    if execution is not None:
        log.end(execution, End.CRASHED)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how.startswith("SIG"):
        number = signal.Signals[how]
        if number is not signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(int(how) if how.lstrip("-").isdigit() else 1)


def print_megabytes(count: int) -> None:
    """Write so many MB of lines to stdout, blocking, as a noisy engine does."""
    line = b"x" * 99 + b"\n"
    block = line * 10_000
    for _ in range(count):
        view = memoryview(block)
        while view:
            view = view[os.write(1, view) :]


def spawn_grandchildren() -> list[int]:
    """Start a setsid child and a double-forked one, both asleep with this environment; return their pids."""
    sleeper = [sys.executable, "-c", f"import time; time.sleep({GRANDCHILD_LIFE_S})"]
    child = os.posix_spawn(sleeper[0], sleeper, environment(), setsid=True)
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        second = os.fork()
        if second == 0:
            os.execve(sleeper[0], sleeper, environment())
        os.write(writer, b"%d" % second)
        os._exit(0)
    os.waitpid(first, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        return [child, int(answer.read())]


def on_sigterm(
    loop: asyncio.AbstractEventLoop,
    mode: Callable[[], str],
    log: ExecutionLog,
    stop: asyncio.Event,
) -> None:
    """Obey SIGTERM as the script says at that moment: exit, drain, or ignore it."""

    def leave() -> None:
        if log.counts.in_flight:
            loop.call_later(0.02, leave)
        else:
            os._exit(0)

    def handle() -> None:
        match mode():
            case "exit":
                os._exit(0)
            case "drain":
                leave()

    loop.add_signal_handler(signal.SIGTERM, handle)
    loop.add_signal_handler(signal.SIGINT, stop.set)


def error_body(message: str, code: str) -> bytes:
    kind = "invalid_request_error" if code != "unavailable" else "server_error"
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )


def status_answer(script: Script) -> bytes:
    """Return the error answer that a script orders."""
    extra = f"retry-after: {script.retry_after_s}\r\n" if script.retry_after_s is not None else ""
    match script.status_body:
        case "garbage":
            return fake_http.whole(script.status, b'<html>\xff\xfe{"error":', extra, "text/html")
        case "empty":
            return fake_http.whole(script.status, b"", extra)
        case "too_long":
            return fake_http.whole(script.status, _TOO_LONG, extra)
        case _:
            body = error_body(f"fake status {script.status}", "fake_status")
            return fake_http.whole(script.status, body, extra)


# Private

# in the words of llama.cpp
_TOO_LONG = msgspec.json.encode(
    {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9000,
            "n_ctx": 4096,
        }
    }
)


def _text(value: bytes) -> str:
    """Decode without loss where it is UTF-8; other bytes as `\\xNN`, since JSON has no place for them."""
    return value.decode("utf-8", "backslashreplace")
