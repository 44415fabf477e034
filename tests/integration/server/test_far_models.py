"""Models on a real host of a real `hostler up --tls`: asked all through crashes, brought by hand, left."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from hostler.app.config import child_environment
from hostler.core.snapshot import Endpoint
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.wire.client import UpstreamLost, fetch

CONFIG = """
[heartbeat]
interval_s = 0.3
suspect_after_s = 1.0
lost_after_s = 6.0
[life]
backoff_first_s = 0.2
orphan_grace_s = 15.0
"""


class Machines:
    """The controller's machine, and one more."""

    def __init__(self) -> None:
        self.a = Cluster(CONFIG + fake_model("local"), joined_at=LOOPBACK)
        self.b = HostRun()
        self.a.truth.others.append(self.b.state_dir)

    @property
    def control_url(self) -> str:
        record: dict[str, Any] = json.loads((self.a.state_dir / "up.json").read_bytes())
        return str(record["control_url"])

    def token(self, role: str) -> str:
        words = [sys.executable, "-m", "hostler", "token", "create", f"--role={role}"]
        done = subprocess.run(
            [*words, f"--state-dir={self.a.state_dir}"],
            env=child_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        words = done.stdout.split()
        return words[words.index("--token") + 1]

    def join(self, host: HostRun, name: str) -> None:
        token = self.token("host")
        words = ["host", "join", f"--controller={self.control_url}", f"--token={token}"]
        host.start(*words, f"--name={name}", "--address=127.0.0.1", "--port=0")

    def start(self, name: str, **fields: object) -> None:
        body = {"model": name, "worker_type": "llm", "engine": "fake", "host": "b", **fields}
        self.a.json("POST", "/api/v1/models", body)
        self.ready(name)

    def ready(self, name: str, within_s: float = 30.0) -> dict[str, Any]:
        self.a.wait_for(lambda: len(self.a.ready(name)) == 1, within_s, f"{name} is ready")
        return self.a.ready(name)[0]

    def client(self) -> openai.OpenAI:
        trust = ssl.create_default_context(cafile=self.a.ca)
        http = httpx2.Client(verify=trust, trust_env=False)
        url, key = f"{self.a.url}/v1", self.a.admin_key
        return openai.OpenAI(base_url=url, api_key=key, http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    with made.b, made.a:
        made.join(made.b, "b")
        made.a.wait_for(lambda: _beats(made), 30, "it has joined")
        made.start("echo")
        yield made


def ask(client: openai.OpenAI, model: str = "echo") -> str:
    messages: Any = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model=model, messages=messages)
    return answer.choices[0].message.content or ""


def test_a_model_on_the_other_machine_answers_the_openai_sdk(machines: Machines) -> None:
    one = machines.ready("echo")
    assert one["pid"] in machines.b.workers().values()
    with machines.client() as client:
        assert ask(client).startswith("echo")
        messages: Any = [{"role": "user", "content": "hello"}]
        stream = client.chat.completions.create(model="echo", messages=messages, stream=True)
        assert sum(len(chunk.choices) for chunk in stream) > 1
        assert ask(client, "local").startswith("local")


def test_F25_F26_a_host_process_that_is_killed_costs_no_request_and_no_worker(
    machines: Machines,
) -> None:
    before, pids = machines.ready("echo"), machines.b.workers()
    with machines.client() as client:
        machines.b.kill()
        machines.b.start()
        ends_s = time.monotonic() + 20
        while not machines.a.ready("echo") or not _beats(machines):
            assert time.monotonic() < ends_s, machines.b.story()
            time.sleep(0.05)
        # the gateway's own probes had found it silent, and find it well again
        machines.a.wait_for(lambda: machines.a.request("GET", "/ready")[0] == 200, 10, "ready")
        assert ask(client).startswith("echo")
    assert machines.b.workers() == pids
    assert machines.ready("echo")["instance_id"] == before["instance_id"]


def _beats(machines: Machines) -> bool:
    """Whether the host process is up and heard its controller."""
    path = machines.b.paths.host_socket
    if not path.exists():
        return False
    try:
        answer = asyncio.run(fetch(Endpoint(socket=str(path)), "GET", "/status", timeout_s=2.0))
    except (UpstreamLost, OSError):
        return False
    found: dict[str, Any] = json.loads(answer.body)
    return bool(found["is_heard"] and found["version"] and found["heard_s"] < 0.5)


def test_F25_a_controller_that_is_killed_costs_no_request_and_no_worker(machines: Machines) -> None:
    before, pids = machines.ready("echo"), machines.b.workers()
    with machines.client() as client:
        machines.a.kill("controller")
        ends_s = time.monotonic() + 4
        asked = 0
        while time.monotonic() < ends_s:
            assert ask(client).startswith("echo")
            asked += 1
    assert asked > 20
    machines.a.wait_for(lambda: machines.a.answers("/api/v1/status"), 20, "the next one serves")
    assert machines.ready("echo")["instance_id"] == before["instance_id"]
    assert machines.b.workers() == pids


def test_a_worker_brought_by_hand_serves_until_its_model_is_stopped(machines: Machines) -> None:
    with HostRun() as third:
        token = machines.token("worker")
        words = ["worker", f"--controller={machines.control_url}", f"--token={token}"]
        third.start(*words, "--name=hand", "--engine=fake", "--address=127.0.0.1")
        machines.ready("hand")
        with machines.client() as client:
            assert ask(client, "hand").startswith("hand")
        (log,) = machines.a.json("GET", "/api/v1/models/hand/logs")["logs"]
        assert log["lines"], "of an instance that its host calls otherwise"
        machines.a.json("DELETE", "/api/v1/models/hand")
        assert third.ended() == 0
        assert third.left_behind() == []


def test_a_host_that_leaves_in_order_is_gone_with_all_it_had(machines: Machines) -> None:
    assert machines.b.stop(signal.SIGTERM) == 0
    assert machines.b.left_behind() == []
    machines.a.wait_for(lambda: not machines.a.ready("echo"), 10, "nobody is sent there")
    machines.b.start()
    machines.ready("echo")
