"""Leftovers: processes and unreaped children that tests leave behind (I16).

A process is this run's when its state folder was made by this test process, or when it descends from it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hostler.app.process import tagged
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.testing.facts import zombies_of

PATIENCE_S = 7.0


class Folders:
    """The folders that this process makes, by `tempfile`, from now on."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def record(self) -> None:
        """Begin to note every folder that is made. There is no end: it is for a test process."""
        make: Callable[..., Any] = tempfile.mkdtemp

        def noted(*args: Any, **kwargs: Any) -> Any:
            folder = make(*args, **kwargs)
            self.made.add(os.path.realpath(folder))
            return folder

        tempfile.mkdtemp = noted

    def hold(self, folder: str) -> bool:
        """Whether a folder is one of these, or below one."""
        real = os.path.realpath(folder)
        return any(real == one or real.startswith(f"{one}/") for one in self.made)


def leftovers(folders: Folders) -> list[str]:
    """Return what this test process has left behind just now, in words."""
    states = tagged(STATE_TAG)
    mine = {pid: f"{STATE_TAG}={value}" for pid, value in states.items() if folders.hold(value)}
    for pid, value in tagged(INSTANCE_TAG).items():
        if pid not in mine and _descends(pid, os.getpid()):
            mine[pid] = f"{INSTANCE_TAG}={value}"
    return [
        *(f"I16 process {pid} is left: {what}" for pid, what in sorted(mine.items())),
        *(f"I16 child {pid} ended and was not reaped" for pid in zombies_of([os.getpid()])),
    ]


def wait_gone(
    folders: Folders, within_s: float = PATIENCE_S, known: Collection[str] = ()
) -> list[str]:
    """Wait until nothing is left; return what still is when the time has passed.

    known: not waited for; it was told before.
    """
    ends_s = time.monotonic() + within_s
    while not set(left := leftovers(folders)) <= set(known) and time.monotonic() < ends_s:
        time.sleep(0.05)
    return left


# Private


def _descends(pid: int, ancestor: int) -> bool:
    """Whether a process is a child, grandchild... of another one."""
    while pid > 1:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return False
        pid = int(fields[1])
        if pid == ancestor:
            return True
    return False
