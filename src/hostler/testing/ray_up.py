"""RayUp: `hostler up --ray` on the head of a RayMachines, with its files in a folder of its own."""

import json
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any

from hostler.testing.rays import RayMachines

PORT = 8100
START_S = 90.0
_ANSWER_S = 20.0


class RayUp:
    """One server under test. Use it as a context manager."""

    def __init__(self, ray: RayMachines, config: str) -> None:
        self.ray = ray
        self.root = Path(tempfile.mkdtemp(prefix="hr", dir="/tmp"))
        self.state_dir = self.root / "s"
        (self.root / "hostler.toml").write_text(config)
        self.env = {
            **ray.env,
            "HOSTLER_STATE_DIR": str(self.state_dir),
        }
        self.url = f"https://{ray.network.address(ray.head)}:{PORT}"
        self.up: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RayUp":
        address = self.ray.network.address(self.ray.head)
        argv = ["up", f"--ray={self.ray.address}", f"--control-host={address}", f"--host={address}"]
        argv += [f"--port={PORT}", f"--config={self.root / 'hostler.toml'}", "--json"]
        with (self.root / "up.log").open("wb") as log:
            self.up = self.ray.network.popen(
                self.ray.head, self.command(*argv), env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            sys.stderr.write(self.log()[-8000:])
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(40)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait(5)
        shutil.rmtree(self.root, ignore_errors=True)

    def note(self, text: str) -> None:
        """Say a figure, for who looks at the test's output."""
        sys.stderr.write(f"ray: {text}\n")

    def log(self) -> str:
        control = self.state_dir / "logs" / "controller.log"
        parts = [self.root / "up.log", control, *sorted(self.ray.root.glob("d/**/host.log"))]
        return "\n".join(
            f"== {path}\n{path.read_text(errors='replace')}" for path in parts if path.exists()
        )

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "hostler", *arguments]

    def run(self, *arguments: str, timeout_s: float = 90.0) -> "subprocess.CompletedProcess[str]":
        """Run a command of ours on the head."""
        return subprocess.run(
            self.ray.network.command(self.ray.head, self.command(*arguments)), env=self.env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What the server lists: instances, hosts or models. Nothing when it does not answer.

        Asked by HTTP, since tests look often: a command takes half a second of a processor.
        """
        try:
            key = (self.state_dir / "admin.key").read_text().strip()
            trust = ssl.create_default_context(cafile=str(self.state_dir / "tls" / "ca.pem"))
            address = self.ray.network.address(self.ray.head)
            with closing(HTTPSConnection(address, PORT, timeout=_ANSWER_S, context=trust)) as line:
                line.request("GET", f"/api/v1/{kind}", headers={"authorization": f"Bearer {key}"})
                answer = line.getresponse()
                found = json.loads(answer.read()) if answer.status == 200 else {kind: []}
        except (OSError, HTTPException):
            return []
        return list(found[kind])

    def instances(self, model: str, state: str = "ready") -> list[dict[str, Any]]:
        return [
            one
            for one in self.told("instances")
            if one["model_name"] == model and one["state"] == state
        ]

    def held(self, what: str) -> int:
        """How many instances have a place of that kind in Ray, as `hostler ps` shows it."""
        shown = [one["placement"] for one in self.told("instances") if not one["stopped"]]
        return sum(what in placement for placement in shown)

    def until(self, is_so: Callable[[], Any], what: str, within_s: float = START_S) -> float:
        """Wait until it is so; return the seconds that took."""
        began_s = time.monotonic()
        while not is_so():
            assert time.monotonic() - began_s < within_s, f"not within {within_s:g} s: {what}"
            assert self.up is not None
            assert self.up.poll() is None, "the server ended"
            time.sleep(0.1)
        return time.monotonic() - began_s
