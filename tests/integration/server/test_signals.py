"""SIGTERM and SIGINT to a controller and a gateway in each phase of their lives: exit 0, nothing left."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.app.process import sweep, tagged
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import fake_model

DRAIN_S, KILL_S = 2.0, 1.0
LIFE = (
    f"[server]\nport = 0\n[life]\norphan_grace_s = 10.0\n"
    f"drain_timeout_s = {DRAIN_S}\nkill_grace_s = {KILL_S}\n"
)
BOUND_S = DRAIN_S + 7.0
PHASES = {
    "loading": fake_model("m", script=json.dumps({"load_s": 60})),
    "ready": fake_model("m"),
    "stubborn": fake_model("m", script=json.dumps({"sigterm": "ignore"})),
}
STATES = {"loading": "starting", "ready": "ready", "stubborn": "ready", "fetching": "fetching"}


@contextmanager
def running(role: str, config: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        folder = Path(name)
        (folder / "c.toml").write_text(config)
        argv = [sys.executable, "-m", "hostler", role, f"--config={folder}/c.toml"]
        with (folder / "log").open("wb") as output:
            one = subprocess.Popen(
                [*argv, f"--state-dir={folder}/s"],
                env=child_environment({STATE_TAG: f"{folder}/s", ROLE_TAG: role}),
                stdout=output,
                stderr=output,
            )
        try:
            yield one, folder
        finally:
            one.kill()
            one.wait(10)
            sweep(STATE_TAG, f"{folder}/s")


def told(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")


def wait_told(folder: Path, word: str) -> None:
    end_s = time.monotonic() + 20
    while word not in told(folder):
        assert time.monotonic() < end_s, f"{word!r} never came:\n{told(folder)}"
        time.sleep(0.02)


def ends_well(one: subprocess.Popen[bytes], folder: Path, number: int) -> None:
    began_s = time.monotonic()
    one.send_signal(number)
    code = one.wait(BOUND_S + 20)
    assert code == 0, told(folder)
    assert time.monotonic() - began_s < BOUND_S * 2  # twice, for a busy machine
    assert tagged(STATE_TAG, f"{folder}/s") == {}
    assert "Traceback" not in told(folder)
    left = [path.name for path in (folder / "s" / "run").glob("*.json")]
    assert left == [], "specifications, with their secrets, are left"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", list(PHASES))
def test_F75_a_controller_ends_well_whatever_its_model_does(
    phase: str, number: signal.Signals
) -> None:
    with running("controller", LIFE + PHASES[phase]) as (one, folder):
        wait_told(folder, f"instance.{STATES[phase]}")
        ends_well(one, folder, number)


@pytest.mark.slow
def test_F75_a_controller_that_fetches_ends_well() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = f"http://127.0.0.1:{silent.getsockname()[1]}/m.gguf#sha256={'0' * 64}"
        model = f'[[models]]\nname = "m"\ntype = "llm"\nsource = "{source}"\n'
        with running("controller", LIFE + model) as (one, folder):
            wait_told(folder, "instance.fetching")
            ends_well(one, folder, signal.SIGTERM)
            assert list((folder / "s" / "models").rglob("*.part")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_F75_a_gateway_without_a_controller_ends_well(number: signal.Signals) -> None:
    with running("gateway", LIFE) as (one, folder):
        path = folder / "s" / "run" / "gateway.sock"
        end_s = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < end_s, told(folder)
            time.sleep(0.02)
        connection = Unix(path)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        ends_well(one, folder, number)
        connection.close()


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))
