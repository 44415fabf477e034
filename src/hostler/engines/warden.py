"""The process between a worker and its engine: it takes the engine's whole tree with it when it ends.

Run as a file, `python -I -S warden.py -- COMMAND ...`, so it starts in 15 ms and imports nothing of ours.
stdin is a socket whose other end the worker holds. A `T` on it means: send the engine SIGTERM. Its end (the
worker closed it, or died) means: end everything at once. That needs no parent-death signal, which would fire
when the *thread* that started a process ends.

Inside a PID namespace it is the first process there: when it ends, the kernel ends the rest. Outside one, it
adopts every orphan of the engine (child subreaper), so that it finds setsid and double-forked ones too.
It exits as the engine did: with its code, or 128 + the number of the signal.
"""

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SWEEPS = 100


def main(argv: list[str]) -> int:
    """Run a command until it ends, or until the worker does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # any handler: the wake-up fd does the work
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # orders come by the socket
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    engine = _start(libc, argv)
    try:
        return _watch(engine, control, reader)
    finally:
        _end_all()


# Private


def _start(libc: ctypes.CDLL, argv: list[str]) -> int:
    """Fork and exec the engine. This process has one thread, so a parent-death signal is exact here."""
    warden = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != warden:
            os._exit(1)
        os.setsid()
        for number in (
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _watch(engine: int, control: int, reader: int) -> int:
    """Obey the worker and reap, until the engine has ended. Returns the exit code."""
    while True:
        code = _reap(engine)
        if code is not None:
            return code
        ready, _, _ = select.select([control, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
        if control in ready:
            if b"T" not in (order := _read(control)):
                if not order:
                    return 128 + signal.SIGKILL
                continue
            os.kill(engine, signal.SIGTERM)


def _read(control: int) -> bytes:
    try:
        return os.read(control, 64)
    except OSError:
        return b""


def _reap(engine: int) -> int | None:
    """Reap all that have ended; return the engine's code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code if code is not None else 1
        if pid == 0:
            return code
        if pid == engine:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


def _end_all() -> None:
    """SIGKILL every descendant, and reap, until none is left; orphans come to us meanwhile."""
    for _ in range(_SWEEPS):
        for pid, parent in _descendants():
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if _parent(pid) in (parent, os.getpid()):  # still the one we saw
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            except OSError:
                continue
            finally:
                os.close(handle)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        select.select([], [], [], 0.005)


def _descendants() -> list[tuple[int, int]]:
    """All processes below this one, as (pid, its parent)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(_parent(int(name)), []).append(int(name))
    found: list[tuple[int, int]] = []
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        found.extend((pid, parent) for pid in children.get(parent, ()))
        waiting.extend(children.get(parent, ()))
    return found


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return -1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[2:]))
