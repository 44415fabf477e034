"""Terminal: the whole screen for a moment, single keys, and everything put back however it ends.

Left by `q`, an exception, Ctrl-C, SIGTERM or SIGHUP, the terminal is as it was; Ctrl-Z puts it back, too, and
`fg` takes it again. Not here: what is shown (top_frame.py), what keys do (top_keys.py).
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from io import StringIO
from types import FrameType

from rich.console import Console
from rich.text import Text

from hostler.app.config import environment

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the other screen, no cursor, long lines do not wrap
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l\x1b[0m"
_ESCAPE_S = 0.05  # within which the rest of a key that begins with Esc comes
_SEQUENCES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "pageup", "\x1b[6~": "pagedown",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end",
    "\r": "enter", "\n": "enter",
}  # fmt: skip


class Ended(BaseException):
    """A signal asks the process to end. number: which one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """The terminal of stdin and stdout. A context manager; for the main thread alone."""

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno()
        self._before: list[object] = []
        self._signals: dict[int, object] = {}
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)

    def __enter__(self) -> "Terminal":
        self._before = termios.tcgetattr(self._keys)
        for number, handler in (
            (signal.SIGTERM, _end),
            (signal.SIGHUP, _end),
            (signal.SIGTSTP, self._pause),
            (signal.SIGWINCH, self._woken),
        ):
            self._signals[number] = signal.signal(number, handler)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._give_back()
        for number, handler in self._signals.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        ends = (self._wake_r, self._wake_w)
        self._wake_r = self._wake_w = -1  # a thread may still want to wake us
        for end in ends:
            os.close(end)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        found = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
        return max(1, found.columns), max(1, found.lines)

    def wake(self) -> None:
        """Let `keys` return; from any thread."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._wake_w, b".")

    def keys(self, wait_s: float) -> list[str]:
        """Return the keys that were pressed, by name; none when the time is over or somebody wakes us.

        Raises:
            EOFError: nobody can press any.
        """
        ready, _, _ = select.select([self._keys, self._wake_r], [], [], wait_s)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
        if self._keys not in ready:
            return []
        data = os.read(self._keys, 4096)
        if not data:
            raise EOFError
        while is_partial(data) and select.select([self._keys], [], [], _ESCAPE_S)[0]:
            data += os.read(self._keys, 4096)
        return read_keys(data)

    def paint(self, lines: Sequence[Text], width: int) -> None:
        """Show these lines, from above."""
        told = "\x1b[K\r\n".join(ansi(line, width) for line in lines)
        sys.stdout.write(f"\x1b[H{told}\x1b[K\x1b[J")
        sys.stdout.flush()

    # Private

    def _take(self) -> None:
        tty.setcbreak(self._keys)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def _woken(self, number: int, at: FrameType | None) -> None:
        self.wake()

    def _pause(self, number: int, at: FrameType | None) -> None:
        """Ctrl-Z: stop as any program does, with the terminal as it was."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # here we stand until somebody lets us go on
        signal.signal(signal.SIGTSTP, self._pause)
        self._take()
        self.wake()


def is_terminal() -> bool:
    """Whether a person sees stdout and can press keys, on a terminal that can be painted."""
    return (
        sys.stdin.isatty()
        and sys.stdout.isatty()
        and environment("TERM") not in (None, "", "dumb", "unknown")
    )


def read_keys(data: bytes) -> list[str]:
    """Return the names of keys in what a terminal sent; what is no key that we know is left out."""
    text = data.decode(errors="replace")
    keys = []
    while text:
        size = _length(text)
        taken, text = text[:size], text[size:]
        if taken in _SEQUENCES:
            keys.append(_SEQUENCES[taken])
        elif taken == "\x1b":
            keys.append("esc")
        elif len(taken) == 1 and taken.isprintable():
            keys.append(taken)
    return keys


def is_partial(data: bytes) -> bool:
    """Whether it may end in the beginning of a key."""
    tail = data[data.rfind(b"\x1b") :] if b"\x1b" in data else b""
    return tail in (b"\x1b", b"\x1b[", b"\x1bO") or (
        tail.startswith(b"\x1b[") and all(byte in b"0123456789;" for byte in tail[2:])
    )


def ansi(line: Text, width: int) -> str:
    """A line as a terminal is told it; without colour where NO_COLOR says so."""
    told = StringIO()
    console = Console(file=told, force_terminal=True, width=max(width, 1), highlight=False)
    console.print(line, end="", no_wrap=True, overflow="crop", crop=True, soft_wrap=True)
    return told.getvalue()


# Private


def _length(text: str) -> int:
    """Characters of the first key."""
    if text[0] != "\x1b" or len(text) == 1:
        return 1
    if text[1] == "O":
        return min(3, len(text))
    if text[1] != "[":
        return 1
    for at, character in enumerate(text[2:], 3):
        if "@" <= character <= "~":
            return at
    return len(text)


def _end(number: int, at: FrameType | None) -> None:
    raise Ended(number)
