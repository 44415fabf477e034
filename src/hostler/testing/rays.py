"""RayCluster under test: a head and nodes on machines of a test's own network (netns.py), with a token."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from hostler.app.config import child_environment
from hostler.testing import netns, ray_start
from hostler.testing.ray_start import (
    HEAD_WITHOUT,
    WITHOUT,
    kill_session,
    ray_environment,
    wait_until_up,
)

PORT = 6379
TRIES = 3


def missing() -> str:
    """Say why there can be no Ray cluster here; empty when there can."""
    return ray_start.missing() or netns.missing()


class RayMachines:
    """Ray on the machines of a network: the first is the head. Use it as a context manager.

    resources: Ray's resources by machine; each has 2 CPUs and what is said here.
    """

    def __init__(
        self,
        network: netns.Network,
        head: str,
        nodes: Mapping[str, str | None],
        gpus: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """nodes: machine -> JSON of custom resources, or None. gpus: machine -> what Ray believes."""
        self._gpus = dict(gpus or {})
        self.network = network
        self.head = head
        self.root = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self._nodes = dict(nodes)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # a quick notice of lost nodes, as the docs say one may set it (docs/design/ray.md)
        self.env = child_environment(
            {
                **ray_environment(self.root),
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_timeout_ms": "1000",
                "RAY_health_check_failure_threshold": "2",
                "RAY_health_check_initial_delay_ms": "1000",
                **(env or {}),
            }
        )

    @property
    def address(self) -> str:
        return f"{self.network.address(self.head)}:{PORT}"

    def __enter__(self) -> "RayMachines":
        try:
            self.start_all()
        except BaseException:  # boundary: nothing may be left of a cluster that did not start
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_all(self) -> None:
        """Start Ray on every machine: the head first, then the nodes, at once."""
        self.start(self.head)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start, self._nodes))

    def start(self, name: str) -> None:
        """Start Ray on a machine, and wait until it says that it runs.

        It has deadlines of its own, which a machine with too much to do misses: it is tried again.
        """
        for left in reversed(range(TRIES)):
            try:
                return self._start(name)
            except OSError:
                if not left:
                    raise
                self.kill(name)

    def kill(self, name: str) -> None:
        """Kill everything of Ray on a machine at once, and all that it started."""
        kill_session(self._processes[name])

    def deaths(self, name: str) -> int:
        """How often Ray has given this machine's node up so far, by its own log."""
        told = f"node_name={self.network.address(name)}"
        log = self.root / self.head / "session_latest" / "logs" / "gcs_server.out"
        with log.open(errors="replace") as lines:
            return sum(1 for line in lines if "death reason" in line and told in line)

    def run(
        self, argv: Sequence[str], timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the head's machine, with the token."""
        return subprocess.run(
            self.network.command(self.head, argv), env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def close(self) -> None:
        for name in reversed(self._processes):
            if self._processes[name].poll() is None:
                self.kill(name)
        shutil.rmtree(self.root, ignore_errors=True)

    # Private

    def _start(self, name: str) -> None:
        if (old := self._processes.pop(name, None)) is not None:
            old.wait(10)
        is_head = name == self.head
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        # with files of the machine's own: two that start at once would take the same names for their sockets
        own = [f"--node-ip-address={self.network.address(name)}", f"--temp-dir={folder}"]
        where = ["--head", f"--port={PORT}", *HEAD_WITHOUT]
        if not is_head:
            where = [f"--address={self.address}"]
            if self._nodes[name]:
                where.append(f"--resources={self._nodes[name]}")
        if name in self._gpus:
            where.append(f"--num-gpus={self._gpus[name]}")
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", *own, *where]
        argv += ["--num-cpus=2", "--block", *WITHOUT]
        log = (folder / "ray.log").open("wb")
        with log:
            self._processes[name] = self.network.popen(
                name, argv, env={**self.env, "RAY_TMPDIR": str(folder)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        wait_until_up(self._processes[name], folder / "ray.log")
