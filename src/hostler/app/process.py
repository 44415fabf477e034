"""Processes: start one, know it again, signal it and nobody else, see its end, sweep what is left over.

A pid alone names nothing (the kernel uses it again), so every signal here goes by pidfd, opened and then
checked against the start time. Processes are found by an environment variable, never by their names.
"""

import asyncio
import os
import select
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from hostler.core.errors import StartupError

_SWEEP_PASSES = 10  # a process may fork while it is being looked for
_PASS_S = 0.02
_NULL = "/dev/null"
# What Python ignores and a child should not.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class ProcessHandle:
    """One process for sure, also after its pid means another one.

    start_ticks: its start time as /proc tells it. boot_id: of the kernel's run; the three name a
    process for ever, so they may be written down.
    """

    def __init__(self, pid: int, start_ticks: int, pidfd: int) -> None:
        """Use `of`, `find` or `spawn`. pidfd: closed with this object."""
        self.pid = pid
        self.start_ticks = start_ticks
        self.boot_id = boot_id()
        self.exit_code: int | None = None  # negative: the signal that ended it
        self._pidfd = pidfd
        weakref.finalize(self, os.close, pidfd)

    @classmethod
    def of(cls, pid: int) -> "ProcessHandle | None":
        """Return a handle on the process that has this pid now; None when there is none."""
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError, ValueError):
            return None
        found = _stat(pid)
        if found is None or _has_ended(pidfd):  # alive: what was read was about this process
            os.close(pidfd)
            return None
        return cls(pid, found, pidfd)

    @classmethod
    def find(cls, pid: int | None, start_ticks: int | None, boot: str) -> "ProcessHandle | None":
        """Return a handle on a process that was written down, if it still runs."""
        if not pid or boot != boot_id():
            return None
        handle = cls.of(pid)
        return handle if handle is not None and handle.start_ticks == start_ticks else None

    def alive(self) -> bool:
        """False when it has ended, reaped or not."""
        return not _has_ended(self._pidfd)

    def signal(self, number: int) -> bool:
        """Send a signal to exactly this process. False: it is gone already."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def terminate(self) -> bool:
        return self.signal(signal.SIGTERM)

    def kill(self) -> bool:
        return self.signal(signal.SIGKILL)

    def reap(self) -> int | None:
        """Return its exit code (negative: a signal) once it ended, and free its pid.

        None: it still runs, or it is no child of this process (an adopted one).
        """
        if self.exit_code is None:
            try:
                ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return None
            if ended is not None:
                by_itself = ended.si_code == os.CLD_EXITED
                self.exit_code = ended.si_status if by_itself else -ended.si_status
        return self.exit_code

    def fileno(self) -> int:
        """The pidfd: readable when the process has ended."""
        return self._pidfd


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: int,
    stdin: int | None = None,
) -> ProcessHandle:
    """Start a program in a session of its own. Never through a shell.

    argv: its first item is a path, or a name looked up on the PATH of `env`.
    stdout: file descriptor for its stdout and stderr. stdin: likewise, /dev/null when None. It
        inherits nothing else.
    Only from the main thread: a parent-death signal fires when the *thread* that started a process
    ends, and no caller should have to know whether somebody down the line uses one.

    Raises:
        StartupError: no such program, or it cannot be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise StartupError("processes are started from the main thread only")
    program = shutil.which(argv[0], path=env.get("PATH", os.defpath))
    if program is None:
        raise StartupError(f"program {argv[0]!r}: not found or not executable")
    source = (os.POSIX_SPAWN_OPEN, 0, _NULL, os.O_RDONLY, 0)
    first = source if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0)
    actions = [
        first,
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stdout, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()),
    ]
    try:
        pid = os.posix_spawn(
            program,
            list(argv),
            dict(env),
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except (OSError, ValueError) as error:
        raise StartupError(f"program {argv[0]!r}: cannot be started ({error})") from error
    pidfd = os.pidfd_open(pid)  # our child: its pid stays taken until we reap it
    return ProcessHandle(pid, _stat(pid) or 0, pidfd)


async def wait_exit(handle: ProcessHandle, *, timeout_s: float | None = None) -> int | None:
    """Wait until the process has ended; return its exit code (negative: a signal).

    None: it still runs after timeout_s, or it was no child of ours (then see `alive`).
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    watched = os.dup(handle.fileno())  # several may wait for one process
    loop.add_reader(watched, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        pass  # or it ended just now, and must not stay a zombie
    finally:
        loop.remove_reader(watched)
        os.close(watched)
    return handle.reap()


def tagged(name: str, value: str | None = None) -> dict[int, str]:
    """Return the live processes of this user that carry an environment variable, as pid → value.

    value: only those with this one. Threads, zombies and this very process are left out. A program
    that overwrites its own environment block (setproctitle) is not found.
    """
    return {handle.pid: found[name] for handle, found in _carriers(name, value)}


def sweep(
    name: str,
    value: str,
    *,
    within: tuple[str, str] | None = None,
    having: str | None = None,
    but_not: AbstractSet[str] = frozenset(),
) -> list[int]:
    """SIGKILL every process of this user that carries name=value, but this one; return their pids.

    within: only those that carry this variable with this value, too.
    having: only those that carry this variable too, with a value that is not in but_not.
    Looks again until none is left, since they may fork meanwhile: about 10 ms, at most a second.
    """
    killed: list[int] = []
    for _ in range(_SWEEP_PASSES):
        found = [
            handle
            for handle, tags in _carriers(name, value)
            if (within is None or tags.get(within[0]) == within[1])
            and (having is None or (having in tags and tags[having] not in but_not))
        ]
        if not found:
            break
        for handle in found:
            if handle.kill() and handle.pid not in killed:
                killed.append(handle.pid)
        time.sleep(_PASS_S)
    return killed


def boot_id() -> str:
    """The id of this run of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# Private


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _inheritable() -> list[int]:
    """Descriptors that a child would get; most of Python's own close by themselves."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # the descriptor of this very listing
            continue
    return found


def _stat(pid: int) -> int | None:
    """The start time of a process, in ticks since boot."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(text.rpartition(b")")[2].split()[19])  # field 22; the name may hold anything


def _carriers(name: str, value: str | None) -> Iterator[tuple[ProcessHandle, dict[str, str]]]:
    wanted = f"{name}=".encode() if value is None else f"{name}={value}".encode()
    own = os.getpid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        tags = _environment(entry.name)
        if tags is None or not any(
            item.startswith(wanted) if value is None else item == wanted for item in tags
        ):
            continue
        handle = ProcessHandle.of(int(entry.name))
        again = _environment(entry.name) if handle is not None else None
        if handle is None or again is None or not handle.alive():
            continue
        pairs = (item.decode("utf-8", "replace").partition("=") for item in again)
        found = {key: text for key, _, text in pairs}
        if name in found and (value is None or found[name] == value):
            yield handle, found


def _environment(pid: str) -> list[bytes] | None:
    """The environment of a process of this user, as it was started; None when it cannot be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
