"""Watch: the watchman of one cluster, as the test sees it."""

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from hostler.manager.workers import STATE_TAG
from hostler.testing import watchman

LOOKS_A_SECOND = 20.0
CLUSTER_TAG = watchman.CLUSTER_TAG.decode()
_END_S = 10.0


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a cluster: alive at least from first_s to last_s (monotonic seconds).

    kind: up, controller, gateway, worker, warden (what fences an engine in) or engine.
    """

    pid: int
    kind: str
    first_s: float
    last_s: float
    is_over: bool
    instance_id: str = ""


class Watch:
    """Looks at a cluster's processes all through a run, from a process of its own.

    That process ends the cluster when this one dies, by SIGKILL too: the pipe between them breaks then.
    It carries the tag of a folder whose name begins like ours: whoever sweeps by beginnings hits it.
    """

    def __init__(self, state_dir: Path, root: Path) -> None:
        self._argv = [str(state_dir), str(root), str(LOOKS_A_SECOND)]
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[Sighting] = []
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin to look; a second call changes nothing."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(watchman.__file__), *self._argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={STATE_TAG: f"{self._argv[0]}-neighbour"},
                start_new_session=True,  # a Ctrl-C is for the tests; their end is told by the pipe
            )

    def sightings(self) -> list[Sighting]:
        """Everyone seen until now. Look again afterwards: the living live on."""
        with self._lock:
            return self._ask(b"s")

    def stop(self) -> list[Sighting]:
        """Look a last time and end. A second call returns nothing."""
        with self._lock:
            process = self._process
            if process is None:
                return []
            try:
                return self._ask(b"q")
            finally:
                self._process = None
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with suppress(OSError):  # nobody reads the other end any more
                            pipe.close()
                process.wait(_END_S)

    # Private

    def _ask(self, order: bytes) -> list[Sighting]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return list(self._ended)
        try:
            process.stdin.write(order)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise AssertionError("I19 the watchman was ended by somebody: no process of a cluster")
        found = msgspec.json.decode(line, type=list[Sighting])
        self._ended += [one for one in found if one.is_over]
        return [*self._ended, *(one for one in found if not one.is_over)]
