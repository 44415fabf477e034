"""What is measured: one server, its processes, and a load pinned to a core."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine

HERE = Path(__file__).resolve().parent


@dataclass
class Server:
    """What is measured. costs: microseconds of CPU by load; whole: of all control processes."""

    name: str
    port: int
    pids: list[int]
    all_pids: list[int]
    key: str = ""
    costs: dict[str, list[float]] = field(default_factory=dict)
    whole: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    failure: str = ""


def run_pinned(command: Sequence[str], core: int, env: dict[str, str]) -> dict[str, float]:
    """Run a load on one core; return what it printed, which is JSON."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # inherited by the child
    try:
        process = subprocess.Popen(
            command, cwd=HERE.parent, env={**os.environ, **env}, stdout=subprocess.PIPE
        )
    finally:
        os.sched_setaffinity(0, mine)
    try:
        output, _ = process.communicate(timeout=90)
    finally:
        machine.end(process)
    line = next(line for line in output.decode().splitlines() if "{" in line)
    found: dict[str, float] = json.loads(line[line.index("{") :])
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, timeout_s: float = 15.0) -> None:
    """Return once somebody listens there.

    Raises:
        TimeoutError
    """
    ends_at_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_at_s:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")
