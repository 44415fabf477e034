"""HostRun: a real host process in a folder of its own, that a test starts, hits and starts again."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from hostler.app.config import child_environment
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, sweep, tagged
from hostler.core.hosts import Offer, Role
from hostler.manager.host_rules import HostRules
from hostler.manager.membership import Membership, save_membership
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.testing.sim_controller import HOST_ID

STOP_S = 30.0
# Ten times as quick as the defaults, so that a test sees what follows after minutes.
QUICK = (
    "[heartbeat]\ninterval_s = 0.3\nsuspect_after_s = 0.9\nlost_after_s = 2.0\n"
    "[life]\norphan_grace_s = 10.0\ndrain_timeout_s = 3.0\nkill_grace_s = 1.0\n"
    "[host]\nsilence_s = 2.0\nanswer_timeout_s = 1.0\ndismissed_after_s = 1.0\n"
)


class HostRun:
    """One host under test. A context manager that leaves nothing."""

    def __init__(
        self,
        controllers: Sequence[str] = (),
        *,
        rules: HostRules | None = None,
        offer: Offer | None = None,
        config: str = QUICK,
        around: Callable[[list[str]], list[str]] = lambda argv: argv,
    ) -> None:
        """controllers: what it has joined; none: it has joined nobody yet.

        around: what makes its command line one of another machine (`Network.command`).
        """
        self._around = around
        self.root = Path(tempfile.mkdtemp(prefix="hst", dir="/tmp"))  # short: Unix socket paths
        self.state_dir = self.root / "h"
        self.paths = StatePaths(self.state_dir)
        self.output = self.root / "host.log"
        self.config = self.root / "hostler.toml"
        self.config.write_text(config)
        self.env: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.paths.create()
        if controllers:
            self.join(controllers, rules=rules, offer=offer)

    def join(
        self,
        controllers: Sequence[str],
        *,
        rules: HostRules | None = None,
        offer: Offer | None = None,
    ) -> None:
        """Be a member without a token: of a simulated controller."""
        membership = Membership(
            host_id=HOST_ID,
            name="b",
            role=Role.WORKER if offer else Role.HOST,
            controllers=tuple(controllers),
            rules=rules or HostRules(),
            offer=offer,
        )
        save_membership(self.paths.host_membership, membership)

    def __enter__(self) -> "HostRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.kill()
        finally:
            sweep(STATE_TAG, str(self.state_dir))
            if error is not None:
                sys.stderr.write(self.story())
            shutil.rmtree(self.root, ignore_errors=True)

    # Life

    def start(self, *words: str) -> None:
        """Start the process; `host run` unless other words are given."""
        argv = [sys.executable, "-m", "hostler", *(words or ("host", "run"))]
        argv += [f"--state-dir={self.state_dir}", f"--config={self.config}"]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self._around(argv),
                env=child_environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash of the host process: its workers are left alone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S)
            self.process = None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to leave, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.ended()

    def ended(self, within_s: float = STOP_S) -> int:
        """Wait until it has ended by itself; return its exit code."""
        assert self.process is not None
        code = self.process.wait(within_s)
        self.process = None
        return code

    # Looks

    def workers(self) -> dict[str, int]:
        """The worker processes that live, by instance: name here, pid."""
        ours = tagged(STATE_TAG, str(self.state_dir))
        found = tagged(INSTANCE_TAG)
        return {found[pid]: pid for pid in sorted(found, reverse=True) if pid in ours}

    def kill_worker(self, instance_id: str, number: int = signal.SIGKILL) -> None:
        if (handle := ProcessHandle.of(self.workers()[instance_id])) is not None:
            handle.signal(number)

    def left_behind(self) -> list[str]:
        """What still is there of instances: processes and files that are named after one."""
        found = [f"process {pid} of {name}" for name, pid in self.workers().items()]
        found += [p.name for p in self.paths.run_dir.iterdir() if p.suffix in _OF_INSTANCES]
        return found

    def story(self) -> str:
        """What its processes wrote: for the person who reads a failure."""
        logs = [self.output, *sorted(self.paths.logs_dir.glob("*.log"))]
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])
            for path in logs
            if path.exists()
        )

    def wait_gone(self, within_s: float = 10.0) -> None:
        """Wait until nothing is left of any instance.

        Raises:
            AssertionError: something is.
        """
        ends_s = time.monotonic() + within_s
        while left := self.left_behind():
            assert time.monotonic() < ends_s, f"left behind: {left}\n{self.story()}"
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether this process runs, and is no zombie."""
    return os.path.exists(f"/proc/{pid}") and ProcessHandle.of(pid) is not None


# Private

_OF_INSTANCES = frozenset({".agent", ".json", ".slots"})
