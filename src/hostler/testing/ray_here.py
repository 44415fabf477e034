"""RayHere: a Ray of one node on the loopback, with a token, for tests that need no other machine."""

import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from hostler.app.config import child_environment
from hostler.testing.ray_start import (
    HEAD_WITHOUT,
    WITHOUT,
    kill_session,
    ray_environment,
    wait_until_up,
)

ADDRESS = "127.0.0.2"  # for 127.0.0.1 Ray would take the machine's own address, which others reach


class RayHere:
    """One Ray. Use it as a context manager; `env` is for whoever connects.

    It starts a process a CPU: few are said here, and tests ask for a part of one.
    """

    def __init__(self, cpus: int = 2) -> None:
        self._cpus = cpus
        self.root = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.env = ray_environment(self.root)

    def __enter__(self) -> "RayHere":
        port, *others = _free_ports(1 + len(_WAITED_FOR))
        self.address = f"{ADDRESS}:{port}"
        argv = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--node-ip-address={ADDRESS}", f"--port={port}", f"--num-cpus={self._cpus}"),
            *(*HEAD_WITHOUT, *WITHOUT, f"--temp-dir={self.root / 'r'}"),
            "--object-store-memory=80000000",
            *(f"--{name}-port={one}" for name, one in zip(_WAITED_FOR, others, strict=True)),
        ]
        log = self.root / "ray.log"
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    argv, env=child_environment(self.env), stdin=subprocess.DEVNULL,
                    stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            wait_until_up(self._process, log)
        except BaseException:  # boundary: nothing may be left of one that did not start
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for path in sorted((self.root / "d").rglob("host.log")):
                sys.stderr.write(f"== {path}\n{path.read_text(errors='replace')[-4000:]}\n")
        self.close()

    def host_folders(self) -> list[Path]:
        """The state folders of host processes on its node, one for each authority."""
        return sorted((self.root / "d" / "hostler-ray").glob("*"))

    def close(self) -> None:
        """Kill everything of it at once."""
        process, self._process = self._process, None
        if process is not None:
            kill_session(process)
        shutil.rmtree(self.root, ignore_errors=True)


# Private


# Ray dies where these take over 15 s to say which port they have: a busy machine tells them.
_WAITED_FOR = (
    "dashboard-agent-grpc",
    "dashboard-agent-listen",
    "metrics-export",
    "runtime-env-agent",
)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server((ADDRESS, 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]
