"""SIGTERM and SIGINT to a controller and a gateway in each phase of their lives: exit 0, nothing left."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.app.process import sweep, tagged
from hostler.app.pulse import takes_connections
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import Cluster, fake_model

DRAIN_S, KILL_S = 2.0, 1.0
LIFE = (
    f"[server]\nport = 0\n[life]\norphan_grace_s = 10.0\n"
    f"drain_timeout_s = {DRAIN_S}\nkill_grace_s = {KILL_S}\n"
)
BOUND_S = DRAIN_S + 7.0
LONG_DRAIN_S = 30.0
LONG_DRAIN = LIFE.replace(f"drain_timeout_s = {DRAIN_S}", f"drain_timeout_s = {LONG_DRAIN_S}")
PHASES = {
    "loading": fake_model("m", script=json.dumps({"load_s": 60})),
    "ready": fake_model("m"),
    "stubborn": fake_model("m", script=json.dumps({"sigterm": "ignore"})),
}
STATES = {"loading": "starting", "ready": "ready", "stubborn": "ready", "fetching": "fetching"}


@contextmanager
def running(
    role: str, config: str, state: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process of that role, and a folder with its log and, unless given, its state."""
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        folder = Path(name)
        (folder / "c.toml").write_text(config)
        argv = [sys.executable, "-m", "hostler", role, f"--config={folder}/c.toml"]
        with (folder / "log").open("wb") as output:
            one = subprocess.Popen(
                [*argv, f"--state-dir={state or folder / 's'}"],
                env=child_environment({STATE_TAG: str(state or folder / "s"), ROLE_TAG: role}),
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
    wait_until(lambda: word in told(folder), folder)


def wait_until(is_true: Callable[[], bool], folder: Path) -> None:
    end_s = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end_s, told(folder)
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
        while not takes_connections(path):
            assert time.monotonic() < end_s, told(folder)
            time.sleep(0.02)
        connection = Unix(path)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        ends_well(one, folder, number)
        connection.close()


# Of a stream under way: how many tokens (20 a second), the signals, and whether it ends well.
STREAMS = {
    "it may finish": (20, (signal.SIGTERM,), True),
    "it is too long": (400, (signal.SIGINT,), False),
    "twice": (400, (signal.SIGTERM, signal.SIGTERM), False),
}
SLOW = fake_model("m", tokens=400, delay_ms=50)


def stream(path: Path, key: str, tokens: int, got: list[bytes]) -> None:
    """Ask a gateway on a Unix socket for a long answer, and keep what comes until it ends."""
    with closing(Unix(path)) as connection:
        body = {
            "model": "m",
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "go"}],
        }
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        try:
            while piece := answer.read1(65536):
                got.append(piece)
        except (http.client.HTTPException, OSError):
            got.append(b"CUT")


@pytest.fixture(scope="module")
def serving() -> Iterator[Path]:
    """The state folder of a controller with one slow model, ready."""
    with running("controller", LIFE + SLOW) as (_, folder):
        wait_told(folder, "instance.ready")
        yield folder / "s"


@pytest.mark.slow
@pytest.mark.parametrize("phase", list(STREAMS))
def test_F75_a_gateway_that_streams_ends_well(serving: Path, phase: str) -> None:
    tokens, signals, is_whole = STREAMS[phase]
    is_hastened = len(signals) > 1
    with running("gateway", LONG_DRAIN if is_hastened else LIFE, serving) as (one, folder):
        path = serving / "run" / "gateway.sock"
        got: list[bytes] = []
        key = (serving / "admin.key").read_text().strip()
        wait_until(lambda: is_ready(path), folder)
        asking = threading.Thread(target=stream, args=(path, key, tokens, got))
        asking.start()
        wait_until(lambda: b"".join(got).count(b"data:") > 3, folder)
        began_s = time.monotonic()
        for number in signals:
            one.send_signal(number)
            time.sleep(0.3)
        assert one.wait(BOUND_S + 20) == 0, told(folder)
        took_s = time.monotonic() - began_s
        asking.join(20)
        assert took_s < BOUND_S  # and so, when hastened, it did not wait for the drain
        text = b"".join(got)
        assert text.endswith(b"data: [DONE]\n\n") is is_whole
        if not is_whole:
            assert b'"draining"' in text
            assert b"[DONE]" not in text
        assert "Traceback" not in told(folder)


@pytest.mark.slow
@pytest.mark.parametrize("again", [None, signal.SIGINT])
def test_F75_a_controller_whose_worker_streams_ends_well(again: signal.Signals | None) -> None:
    """One signal: the stream may end. Another one meanwhile: it may not."""
    with running("controller", LONG_DRAIN + SLOW) as (one, folder):
        wait_told(folder, "instance.ready")
        (data,) = [json.loads(p.read_bytes()) for p in (folder / "s" / "run").glob("*.json")]
        got: list[bytes] = []
        asking = threading.Thread(
            target=stream, args=(Path(data["engine_socket"]), "", 60 if again is None else 400, got)
        )
        asking.start()
        wait_until(lambda: b"".join(got).count(b"data:") > 3, folder)
        began_s = time.monotonic()
        if again is not None:
            one.send_signal(signal.SIGTERM)
            wait_told(folder, "instance.draining")
            ends_well(one, folder, again)
            assert time.monotonic() - began_s < LONG_DRAIN_S / 2
        else:
            ends_well(one, folder, signal.SIGTERM)
        asking.join(20)
        assert (b"[DONE]" in b"".join(got)) is (again is None)


@pytest.mark.slow
def test_F75_up_ends_well_while_its_model_loads() -> None:
    cluster = Cluster(LIFE + PHASES["loading"])
    cluster.launch()
    with closing(cluster):
        cluster.wait_for(
            lambda: (
                cluster.answers("/api/v1/status")
                and [one["state"] for one in cluster.instances()] == ["starting"]
            ),
            30,
            "its model loads",
        )
        began_s = time.monotonic()
        assert cluster.stop() == 0
        assert time.monotonic() - began_s < BOUND_S
        assert cluster.everything() == []


def is_ready(path: Path) -> bool:
    with closing(Unix(path)) as connection:
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))
