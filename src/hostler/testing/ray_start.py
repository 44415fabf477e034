"""Starting and ending one Ray under test: what RayHere and RayMachines have in common."""

import os
import secrets
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

START_S = 120.0  # it is a dozen processes, and the machine may be busy
END_S = 10.0
_LOOK_S = 0.1
# What Ray starts and nobody here asks: what would buy machines, what carries workers' words to drivers.
HEAD_WITHOUT = ("--include-dashboard=false", "--no-monitor")
WITHOUT = ("--include-log-monitor=false", "--disable-usage-stats")


def missing() -> str:
    """Say why there can be no Ray here; empty when there can."""
    return "" if find_spec("ray") is not None else "ray is not installed"


def ray_environment(root: Path) -> dict[str, str]:
    """Return what Ray and whoever connects are told: a token of its own, and files below a folder."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
        "RAY_TMPDIR": str(root),
        "XDG_DATA_HOME": str(root / "d"),  # of the host processes
    }


def wait_until_up(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when `ray start --block` says that it runs. Raises OSError: it ended, or took too long."""
    ends_s = time.monotonic() + START_S
    while "Ray runtime started" not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > ends_s:
            raise OSError(f"Ray did not start ({log}): {text[-2000:]}")
        time.sleep(_LOOK_S)


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that leads a session, and all that it started there, and wait until they are gone."""
    ends_s = time.monotonic() + END_S
    while pids := _session(process.pid):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        if time.monotonic() > ends_s:
            break
        process.poll()  # or it would stay as a dead one
        time.sleep(_LOOK_S)
    process.wait(END_S)


# Private


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    told = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True, check=False
    )
    lines = (line.split() for line in told.stdout.splitlines())
    return [int(pid) for pid, state in lines if not state.startswith("Z")]
