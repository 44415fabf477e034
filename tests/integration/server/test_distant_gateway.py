"""A gateway on another machine than its controller: it joins, serves, reports, and needs nobody to go on."""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from tests.integration.gateway.test_identity import free_port

CONFIG = """
[life]
hung_after_s = 60.0
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: its run folder lies in it then, and goes with it."""
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        yield Path(name)


class Elsewhere:
    """`hostler gateway run` in a folder of its own, as on another machine."""

    def __init__(self, cluster: Cluster, folder: Path, address: str = "127.0.0.1") -> None:
        self.cluster = cluster
        self.folder = folder
        self.address = address
        self.port = free_port()
        self.log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "hostler.toml").write_text(
            f'[server]\nhost = "{address}"\nport = {self.port}\nallow_remote = true\n'
        )

    def start(self, *more: str) -> None:
        record = json.loads((self.cluster.state_dir / "up.json").read_bytes())
        argv = [sys.executable, "-m", "hostler", "gateway", "run"]
        argv += [f"--controller={record['control_url']}", f"--state-dir={self.folder / 's'}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, f"--config={self.folder / 'hostler.toml'}", *more],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: int = signal.SIGTERM) -> int | None:
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        return process.wait(40)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=30)
        try:
            headers = {
                "authorization": f"Bearer {self.cluster.admin_key}",
                "content-type": "application/json",
            }
            sent = json.dumps(body) if body is not None else None
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def chat(self, text: str, model: str = "echo") -> tuple[int, dict[str, str], bytes]:
        messages = [{"role": "user", "content": text}]
        return self.ask("POST", "/v1/chat/completions", {"model": model, "messages": messages})

    def wait_ready(self, status: str = "ok", seconds: float = 20.0) -> None:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                code, _, body = self.ask("GET", "/ready")
            except OSError:
                code, body = 0, b""
            if code == 200 and json.loads(body)["status"] == status:
                return
            time.sleep(0.05)
        raise AssertionError(f"not {status}: {self.log.read_text()}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(CONFIG + fake_model("echo"), joined_at=LOOPBACK) as made:
        yield made


@pytest.fixture
def elsewhere(cluster: Cluster, tmp_path: Path) -> Iterator[Elsewhere]:
    made = Elsewhere(cluster, tmp_path)
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)


def token(cluster: Cluster, role: str = "gateway") -> str:
    told: Any = cluster.json("POST", "/api/v1/tokens", {"role": role})
    return str(told["token"])


def test_it_joins_serves_what_the_controller_starts_and_counts_it_there(
    cluster: Cluster, elsewhere: Elsewhere
) -> None:
    elsewhere.start(f"--token={token(cluster)}")
    elsewhere.wait_ready()
    for number in range(3):
        status, headers, _ = elsewhere.chat(f"hello {number}")
        assert status == 200
        assert headers["x-hostler-instance"] in {
            one["instance_id"] for one in cluster.known_instances()
        }
    status, _, body = elsewhere.ask(
        "POST",
        "/v1/chat/completions",
        {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": True},
    )
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")

    def counted() -> bool:
        rows = cluster.json("GET", "/api/v1/usage")["usage"]
        return bool(sum(row["requests"] for row in rows if row["model"] == "echo") >= 4)

    cluster.wait_for(counted, 10.0, "its usage is told to the controller")
    assert elsewhere.end() == 0


def test_F22_it_goes_on_without_its_controller_also_after_a_restart(
    cluster: Cluster, elsewhere: Elsewhere
) -> None:
    elsewhere.start(f"--token={token(cluster)}")
    elsewhere.wait_ready()
    (controller,) = cluster.pids("controller")
    os.kill(controller, signal.SIGSTOP)
    try:
        elsewhere.wait_ready("degraded")
        assert elsewhere.chat("still there")[0] == 200
        elsewhere.end(signal.SIGKILL)
        elsewhere.start()  # no token: it remembers
        elsewhere.wait_ready("degraded")
        assert elsewhere.chat("and again")[0] == 200
    finally:
        os.kill(controller, signal.SIGCONT)
    elsewhere.wait_ready()
    assert elsewhere.chat("together")[0] == 200


def test_the_relay_may_be_killed_and_is_kept(cluster: Cluster, elsewhere: Elsewhere) -> None:
    elsewhere.start(f"--token={token(cluster)}")
    elsewhere.wait_ready()
    (relay,) = cluster.pids("relay")
    os.kill(relay, signal.SIGKILL)
    cluster.wait_for(
        lambda: cluster.pids("relay") not in ([], [relay]), 10.0, "another relay is there"
    )
    cluster.wait_for(lambda: elsewhere.chat("hello")[0] == 200, 10.0, "it serves again")


def test_one_that_is_removed_ends_and_keeps_nothing(cluster: Cluster, elsewhere: Elsewhere) -> None:
    elsewhere.start(f"--token={token(cluster)}")
    elsewhere.wait_ready()
    state = elsewhere.folder / "s"
    gateway_id = json.loads((state / "gateway.json").read_bytes())["gateway_id"]
    shown = cluster.json("GET", f"/api/v1/hosts/{gateway_id}")["host"]
    assert (shown["role"], shown["standing"]) == ("gateway", "alive")
    status, _, body = cluster.request("DELETE", f"/api/v1/hosts/{gateway_id}")
    assert status < 300, body
    process, elsewhere.process = elsewhere.process, None
    assert process is not None
    assert process.wait(30) != 0
    assert "has removed this gateway" in elsewhere.log.read_text()
    assert not (state / "gateway.json").exists()
    assert not (state / "snapshot.kept").exists()
    elsewhere.start(f"--token={token(cluster)}")
    elsewhere.wait_ready()


def test_it_says_what_it_needs_to_join(cluster: Cluster, elsewhere: Elsewhere) -> None:
    elsewhere.start()
    assert elsewhere.process is not None
    assert elsewhere.process.wait(20) != 0
    assert "it needs --token" in elsewhere.log.read_text()
    elsewhere.start(f"--token={token(cluster, 'host')}")
    assert elsewhere.process.wait(20) != 0
    elsewhere.process = None
